"""Merging the shards' chunks: which chunk trains, which tunes, which tests, and which may do neither."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from earmark.artifacts import CHUNKS, SPLITS, StageTable
from earmark.errors import ConfigError
from earmark.files import read_json
from earmark.text import normalise

SPLIT_NAMES = ("train", "dev", "test")
_COLUMNS = [name for name in CHUNKS.names if name in SPLITS.names or name in ("start_s", "end_s", "touched_terms")]
_TOLD = ["chunk_id", "recording_id", "main_term", "touched_terms"]  # of a rejected chunk
_BATCH_ROWS = 65_536
_REASONS = ("", "shared_recording", "unseen_term", "over_term_limit", "over_no_term_limit")
_KEPT, _SHARED, _UNSEEN, _OVER_TERM, _OVER_NO_TERM = range(len(_REASONS))


@dataclass(frozen=True)
class SplitRule:
    """Who is in which split. Speakers decide; unseen terms are kept out of train and dev altogether."""

    test_speakers: frozenset[str]
    dev_speakers: frozenset[str]
    unseen_terms: frozenset[str]

    def split_of(self, speaker_id: str) -> str:
        if speaker_id in self.test_speakers:
            return "test"
        return "dev" if speaker_id in self.dev_speakers else "train"


def make_rule(
    speakers: set[str],
    main_terms: set[str],
    *,
    test_speakers: float | list[str],
    dev_speakers: float | list[str],
    unseen_terms: float | list[str],
    seed: int,
) -> SplitRule:
    """Resolve shares into names by a hash of each name, so that adding data moves nobody.

    But for a share that no name falls into: the split then gets one name, which further data may replace (a warning).

    ConfigError for a name that does not occur, or a speaker in both dev and test.
    """
    test = _chosen(speakers, test_speakers, "splits.test_speakers", f"{seed}:speaker", 0.0)
    if isinstance(dev_speakers, list) and (both := sorted(test & set(dev_speakers))):
        raise ConfigError(f"splits.dev_speakers: {both[0]!r} is a test speaker too; a speaker belongs to one split")
    dev_from = test_speakers if isinstance(test_speakers, float | int) else 0.0
    dev = _chosen(speakers - test, dev_speakers, "splits.dev_speakers", f"{seed}:speaker", float(dev_from))
    wanted = unseen_terms if isinstance(unseen_terms, float | int) else [normalise(term) for term in unseen_terms]
    unseen = _chosen(main_terms, wanted, "splits.unseen_terms", f"{seed}:term", 0.0)
    return SplitRule(frozenset(test), frozenset(dev), frozenset(unseen))


def split_chunks(
    chunks: dict[str, Path],
    glossary: Path,
    output_folder: Path,
    *,
    test_speakers: float | list[str],
    dev_speakers: float | list[str],
    unseen_terms: float | list[str],
    max_chunks_per_term: int | None,
    seed: int,
) -> None:
    """Write train.parquet, dev.parquet and test.parquet (SPLITS) from `chunks[shard]`.

    Rejected from train and dev: shared_recording, a chunk of a recording in which a speaker of a later split speaks
    too; unseen_term, one that holds any part of a term that training must not know. Rejected anywhere:
    over_term_limit, all but `max_chunks_per_term` chunks of a main term in a split; over_no_term_limit, as large a
    share of its no-term chunks. Who stays is decided by a hash of the chunk's id. ConfigError if no speaker is left to
    train on.
    """
    speakers = {speaker for _, _, batch in _batches(chunks, ["speaker_id"]) for speaker in _values(batch["speaker_id"])}
    rule = make_rule(
        speakers,
        set(read_json(glossary)),
        test_speakers=test_speakers,
        dev_speakers=dev_speakers,
        unseen_terms=unseen_terms,
        seed=seed,
    )
    if speakers <= rule.test_speakers | rule.dev_speakers:
        raise ConfigError(
            f"splits: all {len(speakers)} speakers of the chunks are in dev or test, none is left to train on; "
            "lower splits.test_speakers and splits.dev_speakers, or add speakers"
        )
    placement = _placed(chunks, rule)
    if max_chunks_per_term is not None:
        _limit(chunks, placement, max_chunks_per_term)
    heard = pa.array(sorted(_heard_in_training(chunks, placement)), pa.string())
    tables = {
        name: StageTable(output_folder / f"{name}.parquet", SPLITS, unit="chunks", max_rejected_fraction=1.0)
        for name in SPLIT_NAMES
    }
    with tables["train"], tables["dev"], tables["test"]:
        for shard, rows, batch in _batches(chunks, _COLUMNS):
            split_rows = _split_rows(batch, shard, heard)
            told = batch.select(_TOLD)
            for code, name in enumerate(SPLIT_NAMES):
                here = placement.split[rows] == code
                kept = here & (placement.reason[rows] == _KEPT)
                tables[name].rejected.input += int(here.sum())
                tables[name].keep_table(split_rows.filter(kept))
                rejected = np.flatnonzero(here & ~kept)
                reasons = placement.reason[rows][rejected]
                for chunk, reason in zip(told.take(rejected).to_pylist(), reasons, strict=True):
                    tables[name].reject(chunk["chunk_id"], _REASONS[reason], _detail(chunk, reason, rule, placement))
    logging.info("%s", {name: table.rejected.kept for name, table in tables.items()})


@dataclass(frozen=True)
class _Placement:
    """Where each chunk goes, in the order of `_batches`: two bytes a chunk.

    `later[code]`: the recordings in which a speaker of the dev (1) or test (2) split speaks.
    """

    split: np.ndarray  # uint8[chunks], index into SPLIT_NAMES
    reason: np.ndarray  # uint8[chunks], index into _REASONS
    later: dict[int, set[str]]

    def latest(self, recording_id: str) -> int:
        """The latest split that one of its speakers is in."""
        return max((code for code, recordings in self.later.items() if recording_id in recordings), default=0)


def _batches(chunks: dict[str, Path], columns: list[str]) -> Iterator[tuple[str, slice, pa.RecordBatch]]:
    """(shard, place among all rows, rows) of all shards, by name; a batch is never of two shards."""
    first = 0
    for shard, path in sorted(chunks.items()):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                yield shard, slice(first, first + batch.num_rows), batch
                first += batch.num_rows


def _values(column: pa.Array) -> list[Any]:
    return pc.unique(column).to_pylist()


def _mapped(column: pa.Array, function: Callable[[Any], int], dtype: type[np.integer]) -> np.ndarray:
    """`function` of every value of the column (None is one too), called once for each that occurs."""
    encoded = column.dictionary_encode("encode")
    codes = np.fromiter(map(function, encoded.dictionary.to_pylist()), dtype, len(encoded.dictionary))
    return codes[encoded.indices.to_numpy()]


def _placed(chunks: dict[str, Path], rule: SplitRule) -> _Placement:
    """Every chunk's split by its speaker, and which may not be used there, whatever the limit."""
    splits = []
    later: dict[int, set[str]] = {code: set() for code in range(1, len(SPLIT_NAMES))}
    for _, _, batch in _batches(chunks, ["recording_id", "speaker_id"]):
        split = _mapped(batch["speaker_id"], lambda speaker: SPLIT_NAMES.index(rule.split_of(speaker)), np.uint8)
        for code, recordings in later.items():
            recordings.update(_values(batch["recording_id"].filter(split == code)))
        splits.append(split)
    split = np.concatenate([np.empty(0, np.uint8), *splits])
    placement = _Placement(split, np.full(len(split), _KEPT, np.uint8), later)
    unseen_terms = pa.array(sorted(rule.unseen_terms), pa.string())
    for _, rows, batch in _batches(chunks, ["recording_id", "touched_terms"]):
        reason = placement.reason[rows]  # a view; what is said last counts
        touched = batch["touched_terms"]
        unseen = pc.is_in(pc.list_flatten(touched), unseen_terms)
        reason[pc.list_parent_indices(touched).filter(unseen).to_numpy()] = _UNSEEN
        reason[split[rows] == SPLIT_NAMES.index("test")] = _KEPT
        reason[_mapped(batch["recording_id"], placement.latest, np.uint8) > split[rows]] = _SHARED
    return placement


def _limit(chunks: dict[str, Path], placement: _Placement, limit: int) -> None:
    """Reject all but the `limit` lowest hashes of each term and split, and as large a share of the no-term chunks."""
    term_codes: dict[str | None, int] = {None: 0}
    parts_of_group, parts_of_position = [], []
    for _, rows, batch in _batches(chunks, ["chunk_id", "main_term"]):
        kept = placement.reason[rows] == _KEPT
        term = _mapped(batch["main_term"].filter(kept), lambda t: term_codes.setdefault(t, len(term_codes)), np.int64)
        parts_of_group.append(term * len(SPLIT_NAMES) + placement.split[rows][kept])
        names = batch["chunk_id"].filter(kept).to_pylist()
        parts_of_position.append(np.fromiter((_position(name, "limit") for name in names), np.float64, len(names)))
    group = np.concatenate([np.empty(0, np.int64), *parts_of_group])
    position = np.concatenate([np.empty(0), *parts_of_position])

    found = np.bincount(group, minlength=len(term_codes) * len(SPLIT_NAMES)).reshape(-1, len(SPLIT_NAMES))
    stay = np.minimum(found, limit)  # [terms, splits]; row 0 is "no term"
    for code in range(len(SPLIT_NAMES)):
        terms_found, terms_stay = int(found[1:, code].sum()), int(stay[1:, code].sum())
        stay[0, code] = round((terms_stay / terms_found if terms_found else 1.0) * int(found[0, code]))

    ordered = position[np.lexsort((position, group))]
    last_place = np.cumsum(found) - found.ravel() + stay.ravel() - 1
    last = np.full(stay.size, -1.0)  # the largest hash of each group that stays
    last[stay.ravel() > 0] = ordered[last_place[stay.ravel() > 0]]
    over = position > last[group]
    is_term = group[over] >= len(SPLIT_NAMES)
    placement.reason[np.flatnonzero(placement.reason == _KEPT)[over]] = np.where(is_term, _OVER_TERM, _OVER_NO_TERM)


def _heard_in_training(chunks: dict[str, Path], placement: _Placement) -> set[str]:
    """The main terms that some kept training chunk holds whole: the seen ones, whatever the configuration lists."""
    heard: set[str] = set()
    for _, rows, batch in _batches(chunks, ["main_term", "has_term", "other_terms"]):
        in_training = (placement.split[rows] == SPLIT_NAMES.index("train")) & (placement.reason[rows] == _KEPT)
        trained = batch.filter(in_training).filter(pc.field("has_term"))
        heard.update(_values(trained["main_term"]), _values(pc.list_flatten(trained["other_terms"])))
    return heard


def _split_rows(batch: pa.RecordBatch, shard: str, heard: pa.Array) -> pa.Table:
    """The batch with SPLITS' columns. `heard`: the main terms that training hears."""
    columns = {
        "shard": pa.repeat(shard, batch.num_rows),
        "seen_term": pc.if_else(batch["has_term"], pc.is_in(batch["main_term"], heard), None),
        "duration_s": pc.subtract(batch["end_s"], batch["start_s"]),
    }
    return pa.table({name: columns[name] if name in columns else batch[name] for name in SPLITS.names}, schema=SPLITS)


def _detail(chunk: dict[str, Any], reason: int, rule: SplitRule, placement: _Placement) -> str:
    if reason == _SHARED:
        later = SPLIT_NAMES[placement.latest(chunk["recording_id"])]
        return f"a speaker of {later} speaks in {chunk['recording_id']!r} too"
    if reason == _UNSEEN:
        term = min(rule.unseen_terms.intersection(chunk["touched_terms"]))
        return f"part of the unseen term {term!r} is spoken in it"
    if reason == _OVER_TERM:
        return f"splits.max_chunks_per_term other chunks of {chunk['main_term']!r} are kept"
    return "the share of no-term chunks that is kept is the share of term chunks"


def _chosen(names: set[str], wanted: float | list[str], key: str, salt: str, skip: float) -> set[str]:
    if isinstance(wanted, float | int):
        # `skip` is the share that the split before this one took, so that the two never compete for a hash range.
        chosen = {name for name in names if skip <= _position(name, salt) < skip + wanted}
        if chosen or not wanted or not names:
            return chosen
        only = min(names, key=lambda name: _position(name, salt))
        logging.warning(
            "%s: %s of %d is nobody; it gets %r alone, and another when data is added", key, wanted, len(names), only
        )
        return {only}
    if missing := sorted(set(wanted) - names):
        some = ", ".join(sorted(names)[:10])
        where = "in the glossary" if key == "splits.unseen_terms" else "among the speakers of the chunks"
        raise ConfigError(f"{key}: {missing[0]!r} does not occur {where}; known are {some} …")
    return set(wanted)


def _position(name: str, salt: str) -> float:
    """A name's place in [0, 1), the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(f"{salt}:{name}".encode(), digest_size=8).digest()) / 2**64
