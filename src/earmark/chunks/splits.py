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
_REASONS = ("", "shared_recording", "unseen_term", "over_term_limit", "over_no_term_limit", "over_train_limit")
_KEPT, _SHARED, _UNSEEN, _OVER_TERM, _OVER_NO_TERM, _OVER_TRAIN = range(len(_REASONS))
_TRAIN, _DEV, _TEST = range(len(SPLIT_NAMES))
# The test chunks of training speakers are a part of their own, to be limited by themselves: without them the limits of
# the test speakers' chunks must be the same.
_DRAWN = len(SPLIT_NAMES)
_PARTS = len(SPLIT_NAMES) + 1


@dataclass(frozen=True)
class SplitRule:
    """Who is in which split. Speakers decide; unseen terms are kept out of train and dev altogether.

    Of the training speakers' recordings, the share `test_recordings` goes to test.
    """

    test_speakers: frozenset[str]
    dev_speakers: frozenset[str]
    unseen_terms: frozenset[str]
    test_recordings: float
    seed: int

    def split_of(self, speaker_id: str) -> str:
        if speaker_id in self.test_speakers:
            return "test"
        return "dev" if speaker_id in self.dev_speakers else "train"

    def is_drawn(self, recording_id: str) -> bool:
        """Whether a recording in which training speakers alone are heard goes to test."""
        return self.test_recordings > 0 and _position(recording_id, f"{self.seed}:recording") < self.test_recordings


def make_rule(
    speakers: set[str],
    main_terms: set[str],
    *,
    test_speakers: float | list[str],
    dev_speakers: float | list[str],
    unseen_terms: float | list[str],
    test_recordings: float = 0.0,
    seed: int,
) -> SplitRule:
    """Resolve shares into names by a hash of each name, so that adding data moves nobody.

    But for a share that no name falls into: the split then gets one name, which further data may replace (a warning).
    Recordings are drawn later (`SplitRule.is_drawn`), and none stands in for them.

    ConfigError for a name that does not occur, or a speaker in both dev and test.
    """
    test = _chosen(speakers, test_speakers, "splits.test_speakers", f"{seed}:speaker", 0.0)
    if isinstance(dev_speakers, list) and (both := sorted(test & set(dev_speakers))):
        raise ConfigError(f"splits.dev_speakers: {both[0]!r} is a test speaker too; a speaker belongs to one split")
    dev_from = test_speakers if isinstance(test_speakers, float | int) else 0.0
    dev = _chosen(speakers - test, dev_speakers, "splits.dev_speakers", f"{seed}:speaker", float(dev_from))
    wanted = unseen_terms if isinstance(unseen_terms, float | int) else [normalise(term) for term in unseen_terms]
    unseen = _chosen(main_terms, wanted, "splits.unseen_terms", f"{seed}:term", 0.0)
    return SplitRule(frozenset(test), frozenset(dev), frozenset(unseen), test_recordings, seed)


def split_chunks(
    chunks: dict[str, Path],
    glossary: Path,
    output_folder: Path,
    *,
    test_speakers: float | list[str],
    dev_speakers: float | list[str],
    unseen_terms: float | list[str],
    test_recordings: float = 0.0,
    max_chunks_per_term: int | None,
    max_train_chunks: int | None = None,
    seed: int,
) -> None:
    """Write train.parquet, dev.parquet and test.parquet (SPLITS) from `chunks[shard]`.

    To test go the chunks of the test speakers, and those of the training speakers' recordings that are drawn by a hash
    of their ids, a share of `test_recordings`. A recording in which a dev or test speaker is heard too is never drawn,
    nor one that stands in for a speaker.

    Rejected from train and dev: shared_recording, a chunk of a recording in which a speaker of a later split speaks
    too; unseen_term, one that holds any part of a term that training must not know. Rejected anywhere: over_term_limit,
    all but `max_chunks_per_term` chunks of a main term in a split (of the drawn recordings' by themselves);
    over_no_term_limit, as large a share of its no-term chunks. Rejected from train: over_train_limit, all but
    `max_train_chunks` of what is then left, term and no-term chunks in their proportion; terms and speakers that
    training so loses are unseen. Who stays is decided by a hash of the chunk's id. ConfigError if no speaker, or no
    recording, is left to train on.
    """
    speakers = {speaker for _, _, batch in _batches(chunks, ["speaker_id"]) for speaker in _values(batch["speaker_id"])}
    rule = make_rule(
        speakers,
        set(read_json(glossary)),
        test_speakers=test_speakers,
        dev_speakers=dev_speakers,
        unseen_terms=unseen_terms,
        test_recordings=test_recordings,
        seed=seed,
    )
    if speakers <= rule.test_speakers | rule.dev_speakers:
        raise ConfigError(
            f"splits: all {len(speakers)} speakers of the chunks are in dev or test, none is left to train on; "
            "lower splits.test_speakers and splits.dev_speakers, or add speakers"
        )
    placement = _placed(chunks, rule)
    _check_drawn(placement, rule)
    if max_chunks_per_term is not None:
        _limit(chunks, placement, max_chunks_per_term)
    if max_train_chunks is not None:
        _limit_training(chunks, placement, max_train_chunks)
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
                here = placement.split(rows) == code
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

    part: np.ndarray  # uint8[chunks], index into SPLIT_NAMES, or _DRAWN
    reason: np.ndarray  # uint8[chunks], index into _REASONS
    later: dict[int, set[str]]

    def split(self, rows: slice) -> np.ndarray:
        """uint8[chunks], index into SPLIT_NAMES."""
        return np.minimum(self.part[rows], _TEST)

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


def _mapped(column: pa.Array, function: Callable[[Any], int], dtype: type[np.generic]) -> np.ndarray:
    """`function` of every value of the column (None is one too), called once for each that occurs."""
    encoded = column.dictionary_encode("encode")
    codes = np.fromiter(map(function, encoded.dictionary.to_pylist()), dtype, len(encoded.dictionary))
    return codes[encoded.indices.to_numpy()]


def _placed(chunks: dict[str, Path], rule: SplitRule) -> _Placement:
    """Every chunk's split by its speaker and recording, and which may not be used there, whatever the limit."""
    parts = []
    later: dict[int, set[str]] = {code: set() for code in (_DEV, _TEST)}
    kept_whole: set[str] = set()  # drawn, but standing in for a speaker: test would get an unseen one
    for _, _, batch in _batches(chunks, ["recording_id", "speaker_id"]):
        part = _mapped(batch["speaker_id"], lambda speaker: SPLIT_NAMES.index(rule.split_of(speaker)), np.uint8)
        for code, recordings in later.items():
            recordings.update(_values(batch["recording_id"].filter(part == code)))
        stands_in = pc.equal(batch["recording_id"], batch["speaker_id"])
        kept_whole.update(filter(rule.is_drawn, _values(batch["recording_id"].filter(stands_in))))
        parts.append(part)
    part = np.concatenate([np.empty(0, np.uint8), *parts])
    placement = _Placement(part, np.full(len(part), _KEPT, np.uint8), later)
    unseen_terms = pa.array(sorted(rule.unseen_terms), pa.string())
    for _, rows, batch in _batches(chunks, ["recording_id", "touched_terms"]):
        part, reason = placement.part[rows], placement.reason[rows]  # views
        latest = _mapped(batch["recording_id"], placement.latest, np.uint8)
        drawn = _mapped(batch["recording_id"], lambda name: rule.is_drawn(name) and name not in kept_whole, np.bool_)
        part[(latest == _TRAIN) & drawn] = _DRAWN
        touched = batch["touched_terms"]
        unseen = pc.is_in(pc.list_flatten(touched), unseen_terms)
        # What is said last counts.
        reason[pc.list_parent_indices(touched).filter(unseen).to_numpy()] = _UNSEEN
        reason[part >= _TEST] = _KEPT
        reason[latest > part] = _SHARED
    return placement


def _check_drawn(placement: _Placement, rule: SplitRule) -> None:
    """ConfigError if the share of recordings left none to train on; a warning if it took none."""
    if not rule.test_recordings:
        return
    if (placement.part == _DRAWN).any():
        if not (placement.part == _TRAIN).any():
            raise ConfigError(
                f"splits.test_recordings: {rule.test_recordings} of the training speakers' recordings are all of them, "
                "none is left to train on; lower it"
            )
    else:
        logging.warning(
            "splits.test_recordings: %s of the training speakers' recordings is none (one that stands in for a "
            "speaker is never drawn); there will be no figures of seen speakers",
            rule.test_recordings,
        )


def _limit(chunks: dict[str, Path], placement: _Placement, limit: int) -> None:
    """Reject all but the `limit` lowest hashes of each term and part, and as large a share of the no-term chunks."""
    term_codes: dict[str | None, int] = {None: 0}
    parts_of_group, parts_of_position = [], []
    for _, rows, batch in _batches(chunks, ["chunk_id", "main_term"]):
        kept = placement.reason[rows] == _KEPT
        term = _mapped(batch["main_term"].filter(kept), lambda t: term_codes.setdefault(t, len(term_codes)), np.int64)
        parts_of_group.append(term * _PARTS + placement.part[rows][kept])
        names = batch["chunk_id"].filter(kept).to_pylist()
        parts_of_position.append(np.fromiter((_position(name, "limit") for name in names), np.float64, len(names)))
    group = np.concatenate([np.empty(0, np.int64), *parts_of_group])
    position = np.concatenate([np.empty(0), *parts_of_position])

    found = np.bincount(group, minlength=len(term_codes) * _PARTS).reshape(-1, _PARTS)
    stay = np.minimum(found, limit)  # [terms, parts]; row 0 is "no term"
    for code in range(_PARTS):
        terms_found, terms_stay = int(found[1:, code].sum()), int(stay[1:, code].sum())
        stay[0, code] = round((terms_stay / terms_found if terms_found else 1.0) * int(found[0, code]))

    ordered = position[np.lexsort((position, group))]
    last_place = np.cumsum(found) - found.ravel() + stay.ravel() - 1
    last = np.full(stay.size, -1.0)  # the largest hash of each group that stays
    last[stay.ravel() > 0] = ordered[last_place[stay.ravel() > 0]]
    over = position > last[group]
    is_term = group[over] >= _PARTS
    placement.reason[np.flatnonzero(placement.reason == _KEPT)[over]] = np.where(is_term, _OVER_TERM, _OVER_NO_TERM)


def _limit_training(chunks: dict[str, Path], placement: _Placement, limit: int) -> None:
    """Reject all but `limit` of the training chunks: the lowest hashes of term and no-term chunks, in proportion."""
    parts_of_row, parts_of_has_term, parts_of_position = [np.empty(0, np.int64)], [np.empty(0, bool)], [np.empty(0)]
    for _, rows, batch in _batches(chunks, ["chunk_id", "has_term"]):
        kept = (placement.part[rows] == _TRAIN) & (placement.reason[rows] == _KEPT)
        names = batch["chunk_id"].filter(kept).to_pylist()
        parts_of_row.append(rows.start + np.flatnonzero(kept))
        parts_of_has_term.append(batch["has_term"].filter(kept).to_numpy(zero_copy_only=False).astype(bool))
        # Not the hash of `_limit`: by that, what it left of frequent terms would come first.
        parts_of_position.append(np.fromiter((_position(name, "train") for name in names), np.float64, len(names)))
    row, has_term = np.concatenate(parts_of_row), np.concatenate(parts_of_has_term)
    position = np.concatenate(parts_of_position)
    if len(row) <= limit:
        return
    terms = round(limit * int(has_term.sum()) / len(row))
    for kind, stay in ((True, terms), (False, limit - terms)):
        of_kind = np.flatnonzero(has_term == kind)
        over = of_kind[np.argsort(position[of_kind], kind="stable")[stay:]]
        placement.reason[row[over]] = _OVER_TRAIN
    logging.warning("splits.max_train_chunks: a quick look, training gets %d of %d chunks", limit, len(row))


def _heard_in_training(chunks: dict[str, Path], placement: _Placement) -> set[str]:
    """The main terms that some kept training chunk holds whole: the seen ones, whatever the configuration lists."""
    heard: set[str] = set()
    for _, rows, batch in _batches(chunks, ["main_term", "has_term", "other_terms"]):
        in_training = (placement.part[rows] == _TRAIN) & (placement.reason[rows] == _KEPT)
        heard |= terms_in(batch.filter(in_training))
    return heard


def terms_in(chunks: pa.RecordBatch | pa.Table) -> set[str]:
    """The main terms that some of the term chunks hold whole."""
    with_term = chunks.filter(pc.field("has_term"))
    return {*_values(with_term["main_term"]), *_values(pc.list_flatten(with_term["other_terms"]))}


def seen_terms(chunks: pa.RecordBatch | pa.Table, heard: pa.Array) -> pa.Array | pa.ChunkedArray:
    """The column seen_term, where training hears the main terms `heard`: null where there is no term."""
    return pc.if_else(chunks["has_term"], pc.is_in(chunks["main_term"], heard), None)


def _split_rows(batch: pa.RecordBatch, shard: str, heard: pa.Array) -> pa.Table:
    """The batch with SPLITS' columns. `heard`: the main terms that training hears."""
    columns = {
        "shard": pa.repeat(shard, batch.num_rows),
        "seen_term": seen_terms(batch, heard),
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
    if reason == _OVER_TRAIN:
        return "splits.max_train_chunks others are kept"
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
