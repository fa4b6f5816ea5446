"""Chunks that were cut before: the interchange file of earlier systems, as input."""

from __future__ import annotations

import codecs
import hashlib
import logging
import re
import reprlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from earmark import text
from earmark.artifacts import CHUNKS, RejectedRows, StageTable, iterate_rows, write_json
from earmark.audio import SAMPLE_RATE, encode_flac, read_audio
from earmark.errors import AudioError, ConfigError, InputError
from earmark.files import opened, read_json
from earmark.json_items import list_items
from earmark.logs import progress
from earmark.mentions import MentionFinder

# A chunk as the file states it, before its audio is read; `source` is file:line, or file and the entry's number.
ENTRIES = pa.schema(
    [
        *(CHUNKS.field(name) for name in ("chunk_id", "segment_id", "recording_id", "speaker_id", "text")),
        ("audio_path", pa.string()),
        ("terms", pa.list_(pa.string())),
        *(CHUNKS.field(name) for name in ("start_s", "end_s", "term_start_s", "term_end_s")),
        ("source", pa.string()),
    ]
)
OPEN_SHARDS = 250  # written in one pass: well under the number of files a process may open
WAITING_ROWS = 65_536  # of all shards that are open, before they are written: some 2 KB each
TIME_TOLERANCE_S = 1e-3  # within which the times of a term and of its chunk are the same
DURATION_TOLERANCE_S = 0.1  # by which a chunk's audio may be longer or shorter than stated
_TIMES = {
    "start_s": "extended_start_time", "end_s": "extended_end_time", "term_start_s": "term_start_time",
    "term_end_s": "term_end_time",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _BadEntry:
    """What to write into the rejected rows."""

    id: str
    reason: str
    detail: str


class _EntryError(Exception):
    def __init__(self, reason: str, detail: str):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def deal_entries(
    files: list[Path],
    shards: dict[str, Path],
    summary: Path,
    *,
    recording_pattern: str | None,
    max_rejected_fraction: float,
) -> None:
    """Write `shards[name]` (ENTRIES) from interchange files: a JSON list (`.json`) or one object a line (`.jsonl`).

    An entry that names no recording_id belongs to the recording that the first group of `recording_pattern` finds in
    its segment id, or else to one of its own; one that names no speaker_id is spoken by its recording. Recordings go
    to shards by a hash: the files are read once to check them, and once for every OPEN_SHARDS shards. `summary` holds
    the counts and `without_speaker`. Rejected: broken_entry, bad_id, bad_time, duplicate_entry (same segment, audio,
    times and terms). ConfigError where the pattern fits no segment id.
    """
    pattern = _compiled(recording_pattern)
    rejected = RejectedRows("entries", max_rejected_fraction)
    without_speaker = matched = 0
    for row in progress(_rows(files, pattern), unit="entries"):
        rejected.input += 1
        if isinstance(row, _BadEntry):
            rejected.reject(row.id, row.reason, row.detail)
            continue
        rejected.kept += 1
        without_speaker += row["speaker_id"] == row["recording_id"]
        matched += row["recording_id"] != row["segment_id"]
    if not rejected.input:
        raise InputError(f"{', '.join(map(str, files))}: no entry; set chunks.from_file")
    rejected.close(summary)
    if pattern and rejected.kept and not matched:
        raise ConfigError(
            f"chunks.recording_pattern {recording_pattern!r} fits none of the {rejected.kept} segment ids"
        )
    if without_speaker:
        logging.warning(
            "%d chunks name no speaker; their recording stands in for it, so one voice may be on both sides of a split",
            without_speaker,
        )
    names = sorted(shards)
    for first in range(0, len(names), OPEN_SHARDS):
        now = names[first : first + OPEN_SHARDS]
        rows = min(4096, WAITING_ROWS // len(now))
        with ExitStack() as stack:
            tables = {
                name: stack.enter_context(
                    StageTable(shards[name], ENTRIES, unit="entries", max_rejected_fraction=0, rows_per_group=rows)
                )
                for name in now
            }
            for row in _rows(files, pattern):
                if isinstance(row, _BadEntry):
                    continue
                if table := tables.get(names[_position(row["recording_id"]) % len(names)]):
                    table.rejected.input += 1
                    table.keep(row)
    write_json(summary, {**rejected.counts(), "without_speaker": without_speaker})


def pack_chunks(
    entries: Path,
    glossary: Path,
    alt2main: Path,
    ambiguous_aliases: Path,
    dropped_aliases: Path,
    output: Path,
    *,
    language: str,
    max_rejected_fraction: float,
) -> None:
    """Write the CHUNKS table of one shard's ENTRIES, with their audio.

    The first of an entry's terms is what the chunk was cut for. Rejected: unknown_term (not in the glossary),
    term_in_no_term_chunk (its text holds one), unreadable_audio, not_finite (NaN or infinite samples), wrong_duration
    (other than the times state).
    """
    mains = {main: main for main in read_json(glossary)} | read_json(alt2main)
    ambiguous = read_json(ambiguous_aliases)
    dropped = read_json(dropped_aliases)
    finder = MentionFinder(mains, ambiguous, dropped)
    named = mains | ambiguous  # who names a chunk's term means it, however common the word
    with StageTable(
        output, CHUNKS, unit="chunks", max_rejected_fraction=max_rejected_fraction, rows_per_group=256
    ) as table:
        for row in progress(iterate_rows(entries), unit="chunks"):
            table.rejected.input += 1
            try:
                terms = [_main_term(term, named) for term in row["terms"]]
                words = text.words(row["text"])
                names = list(finder.find_names(words))
                touched = {mention.main_term for mention in names}.union(terms)
                if not terms and (surfaces := finder.surfaces_of(names)):
                    spoken = min(mention.main_term for mention in surfaces)
                    raise _EntryError("term_in_no_term_chunk", f"{spoken!r} is spoken in it, by its own text")
                samples = _samples(row)
            except _EntryError as error:
                table.reject(row["chunk_id"], error.reason, f"{row['source']}: {error.detail}")
                continue
            table.keep(
                {name: row[name] for name in ("chunk_id", "segment_id", "recording_id", "speaker_id")}
                | {name: row[name] for name in ("start_s", "end_s")}
                | {
                    "term": text.normalise(row["terms"][0]) if terms else None,
                    "main_term": terms[0] if terms else None,
                    "has_term": bool(terms),
                    "other_terms": sorted(set(terms[1:]) - {terms[0]}) if terms else [],
                    "touched_terms": sorted(touched),
                    "text": " ".join(words),
                    "language": language,
                    "term_start_s": row["term_start_s"] if terms else None,
                    "term_end_s": row["term_end_s"] if terms else None,
                    "sample_rate": SAMPLE_RATE,
                    "audio": {"bytes": encode_flac(samples), "path": f"{row['chunk_id']}.flac"},
                }
            )


def _rows(files: list[Path], pattern: re.Pattern[str] | None) -> Iterator[dict[str, Any] | _BadEntry]:
    """Every entry as a row of ENTRIES, or why it is none; of chunks that come twice, the first."""
    seen: set[bytes] = set()  # 16 bytes each, some 1 GB for ten million
    for path, source, entry in _entries(files):
        try:
            row = _row(entry, pattern)
            row["audio_path"] = str((path.parent / row["audio_path"]).absolute())
            digest = _digest(row)
            if digest in seen:
                raise _EntryError("duplicate_entry", "the same chunk of the same segment was there before")
        except _EntryError as error:
            segment_id = entry.get("segment_id", "") if isinstance(entry, dict) else ""
            segment_id = segment_id if isinstance(segment_id, str) else _shown(segment_id)
            yield _BadEntry(segment_id, error.reason, f"{source}: {error.detail}")
            continue
        seen.add(digest)
        yield row | {"chunk_id": f"{row['segment_id']}-f{digest.hex()[:16]}", "source": source}


def _entries(files: list[Path]) -> Iterator[tuple[Path, str, Any]]:
    """(file, where in it, entry) of every entry; a line that is no JSON gives None."""
    for path in files:
        if path.name.endswith((".jsonl", ".jsonl.gz")):
            with opened(path) as file:
                for number, line in enumerate(file, start=1):
                    if line := line.removeprefix(codecs.BOM_UTF8).strip():
                        yield path, f"{path}:{number}", _parsed(line)
        else:
            for number, entry in enumerate(list_items(path), start=1):
                yield path, f"{path}, entry {number}", entry


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _row(entry: Any, pattern: re.Pattern[str] | None) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise _EntryError("broken_entry", "not a JSON object")
    audio, spoken, terms = (
        entry.get(name) for name in ("term_chunk_audio", "term_chunk_text", "term_chunk_audio_ground_truth_terms")
    )
    if not isinstance(audio, str) or not audio or "\0" in audio:
        raise _EntryError("broken_entry", f"term_chunk_audio is {_shown(audio)}; expected a path")
    if not isinstance(spoken, str) or not text.is_unicode(spoken + audio):
        raise _EntryError("broken_entry", f"term_chunk_text is {_shown(spoken)}; expected text")
    if not isinstance(terms, list) or not all(isinstance(term, str) and text.is_unicode(term) for term in terms):
        raise _EntryError(
            "broken_entry", f"term_chunk_audio_ground_truth_terms is {_shown(terms)}; expected a list of texts"
        )
    segment_id = _id(entry, "segment_id")
    found = pattern.search(segment_id) if pattern else None
    recording_id = _id(entry, "recording_id", (found and found[1]) or segment_id)
    return {
        "segment_id": segment_id,
        "recording_id": recording_id,
        "speaker_id": _id(entry, "speaker_id", recording_id),
        "text": spoken,
        "audio_path": audio,
        "terms": terms,
        **_times(entry, has_term=bool(terms)),
    }


def _id(entry: dict[str, Any], name: str, default: str | None = None) -> str:
    value = entry.get(name)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise _EntryError("bad_id", f"{name} is {_shown(value)}; expected text")
    if why := text.id_problem(value):
        raise _EntryError("bad_id", f"{name} {value[:80]!r} {why}")
    return value


def _times(entry: dict[str, Any], has_term: bool) -> dict[str, float]:
    """The times of the chunk and of its term; those of the chunk stand in where there is none."""
    times: dict[str, float] = {}
    for name, spelling in _TIMES.items():
        value = entry.get(spelling if has_term else _TIMES[name.removeprefix("term_")])
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
            raise _EntryError("bad_time", f"{spelling} is {_shown(value)}; expected seconds")
        times[name] = float(value)
    for edge, inner in (("start_s", "term_start_s"), ("end_s", "term_end_s")):
        # Sums of rounded seconds: a term may stick out of its chunk by less than an audio sample's worth of error.
        if abs(times[edge] - times[inner]) < TIME_TOLERANCE_S:
            times[inner] = times[edge]
    if not 0 <= times["start_s"] <= times["term_start_s"] < times["term_end_s"] <= times["end_s"]:
        raise _EntryError("bad_time", f"the term does not lie inside the chunk: {times}")
    return times


def _main_term(term: str, mains: dict[str, str]) -> str:
    main = mains.get(text.normalise(term))
    if main is None:
        raise _EntryError("unknown_term", f"{term[:80]!r} is neither a term nor an alias of the glossary")
    return main


def _samples(row: dict[str, Any]) -> np.ndarray:
    try:
        samples = read_audio(Path(row["audio_path"]))
    except AudioError as error:
        raise _EntryError("unreadable_audio", str(error)) from None
    if not np.isfinite(samples).all():
        raise _EntryError("not_finite", f"{np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite")
    stated_s, found_s = row["end_s"] - row["start_s"], len(samples) / SAMPLE_RATE
    if abs(stated_s - found_s) > DURATION_TOLERANCE_S:
        raise _EntryError(
            "wrong_duration", f"{row['audio_path']} lasts {found_s:.3f} s, its times say {stated_s:.3f} s"
        )
    return samples


def _shown(value: Any) -> str:
    """`value` in at most 80 characters. Its own repr would fail on lists that are nested a thousand times."""
    return f"{reprlib.repr(value):.80}"


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"chunks.recording_pattern {pattern!r} is no regular expression ({error})") from None
    if compiled.groups < 1:
        raise InputError(f"chunks.recording_pattern {pattern!r} has no group; put the recording's part in brackets")
    return compiled


def _digest(row: dict[str, Any]) -> bytes:
    """16 bytes that tell a chunk from every other, whatever stands before it in the file."""
    parts = (row["segment_id"], row["audio_path"], *row["terms"], *(repr(row[name]) for name in _TIMES))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _position(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
