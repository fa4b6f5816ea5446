"""Merging the shards' chunks: which chunk trains, which tunes, which tests, and which may do neither."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from earmark.artifacts import CHUNKS, SPLITS, StageTable, iterate_rows
from earmark.errors import ConfigError
from earmark.files import read_json
from earmark.text import normalise

SPLIT_NAMES = ("train", "dev", "test")
_COLUMNS = [name for name in CHUNKS.names if name != "audio"]


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
    speakers = {row["speaker_id"] for path in chunks.values() for row in iterate_rows(path, columns=["speaker_id"])}
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
    placement = _Placement(rule, _later_recordings(chunks, rule))
    if max_chunks_per_term is not None:
        placement = _limited(chunks, placement, max_chunks_per_term)
    heard = _heard_in_training(chunks, placement)
    tables = {
        name: StageTable(output_folder / f"{name}.parquet", SPLITS, unit="chunks", max_rejected_fraction=1.0)
        for name in SPLIT_NAMES
    }
    with tables["train"], tables["dev"], tables["test"]:
        for shard, path in sorted(chunks.items()):
            for chunk in iterate_rows(path, columns=_COLUMNS):
                split, problem = placement.place(chunk)
                tables[split].rejected.input += 1
                if problem:
                    tables[split].reject(chunk["chunk_id"], *problem)
                else:
                    tables[split].keep(_row(chunk, shard, heard))
    logging.info("%s", {name: table.rejected.kept for name, table in tables.items()})


@dataclass(frozen=True)
class _Placement:
    """Where each chunk goes. `later`: recordings in which a dev or test speaker speaks, with the later of the two.

    `last`: (split, main term or None) -> the largest hash that is still within the limit; None: there is no limit.
    """

    rule: SplitRule
    later: dict[str, str]
    last: dict[tuple[str, str | None], float] | None = None

    def place(self, chunk: dict[str, Any]) -> tuple[str, tuple[str, str] | None]:
        """(split, (reason, detail) why the chunk may not be used there or None)."""
        split = self.rule.split_of(chunk["speaker_id"])
        if (later := self.later.get(chunk["recording_id"], split)) != split:
            return split, ("shared_recording", f"a speaker of {later} speaks in {chunk['recording_id']!r} too")
        if split != "test" and (unseen := self.rule.unseen_terms.intersection(chunk["touched_terms"])):
            return split, ("unseen_term", f"part of the unseen term {min(unseen)!r} is spoken in it")
        main = chunk["main_term"]
        if self.last is not None and _position(chunk["chunk_id"], "limit") > self.last[split, main]:
            if main is None:
                return split, (
                    "over_no_term_limit",
                    "the share of no-term chunks that is kept is the share of term chunks",
                )
            return split, ("over_term_limit", f"splits.max_chunks_per_term other chunks of {main!r} are kept")
        return split, None


def _later_recordings(chunks: dict[str, Path], rule: SplitRule) -> dict[str, str]:
    later: dict[str, str] = {}
    for path in chunks.values():
        for row in iterate_rows(path, columns=["recording_id", "speaker_id"]):
            split = rule.split_of(row["speaker_id"])
            if split == "test" or (split == "dev" and row["recording_id"] not in later):
                later[row["recording_id"]] = split
    return later


def _limited(chunks: dict[str, Path], placement: _Placement, limit: int) -> _Placement:
    """`placement` with the hashes up to which a term's chunks stay: the lowest `limit` of each term and split."""
    lowest: dict[tuple[str, str], list[float]] = defaultdict(list)  # the largest of them first, negated
    found: Counter[str] = Counter()  # term chunks by split
    no_term: dict[str, list[float]] = defaultdict(list)
    for path in chunks.values():
        for chunk in iterate_rows(path, columns=_COLUMNS):
            split, problem = placement.place(chunk)
            if problem:
                continue
            position = _position(chunk["chunk_id"], "limit")
            if not chunk["has_term"]:
                no_term[split].append(position)
                continue
            found[split] += 1
            kept = lowest[split, chunk["main_term"]]
            if len(kept) < limit:
                heapq.heappush(kept, -position)
            else:
                heapq.heappushpop(kept, -position)
    last: dict[tuple[str, str | None], float] = {key: -kept[0] for key, kept in lowest.items()}
    for split, positions in no_term.items():
        kept_terms = sum(len(kept) for (name, _), kept in lowest.items() if name == split)
        share = kept_terms / found[split] if found[split] else 1.0
        stay = round(share * len(positions))
        last[split, None] = sorted(positions)[stay - 1] if stay else -1.0
    return replace(placement, last=last)


def _heard_in_training(chunks: dict[str, Path], placement: _Placement) -> set[str]:
    """The main terms that some kept training chunk holds whole: the seen ones, whatever the configuration lists."""
    heard: set[str] = set()
    for path in chunks.values():
        for chunk in iterate_rows(path, columns=_COLUMNS):
            if chunk["has_term"] and placement.place(chunk) == ("train", None):
                heard.update([chunk["main_term"], *chunk["other_terms"]])
    return heard


def _row(chunk: dict[str, Any], shard: str, heard: set[str]) -> dict[str, Any]:
    row = {name: chunk.get(name) for name in SPLITS.names}
    row["shard"] = shard
    row["seen_term"] = chunk["main_term"] in heard if chunk["has_term"] else None
    row["duration_s"] = chunk["end_s"] - chunk["start_s"]
    return row


def _chosen(names: set[str], wanted: float | list[str], key: str, salt: str, skip: float) -> set[str]:
    if isinstance(wanted, float | int):
        # `skip` is the share that the split before this one took, so that the two never compete for a hash range.
        chosen = {name for name in names if skip <= _position(name, salt) < skip + wanted}
        # A share of few names may come out empty; a split that was asked for gets one.
        return chosen or ({min(names, key=lambda name: _position(name, salt))} if wanted and names else set())
    if missing := sorted(set(wanted) - names):
        some = ", ".join(sorted(names)[:10])
        where = "in the glossary" if key == "splits.unseen_terms" else "among the speakers of the chunks"
        raise ConfigError(f"{key}: {missing[0]!r} does not occur {where}; known are {some} …")
    return set(wanted)


def _position(name: str, salt: str) -> float:
    """A name's place in [0, 1), the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(f"{salt}:{name}".encode(), digest_size=8).digest()) / 2**64
