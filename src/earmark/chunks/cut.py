"""Cutting the chunks of one shard: plan from the alignments, then decode each recording once and slice it."""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earmark.artifacts import CHUNKS, CORPUS, StageTable, iterate_rows
from earmark.audio import SAMPLE_RATE, AudioSource, encode_flac, read_spans
from earmark.chunks.plan import (
    PlannedChunk,
    SpokenTerm,
    free_gaps,
    jittered,
    no_term_chunk,
    no_term_lengths,
    random_of,
    term_chunk,
    timed,
    with_text,
    with_touched,
)
from earmark.errors import InputError
from earmark.files import read_json
from earmark.logs import progress
from earmark.mentions import MentionFinder

_ROW = [name for name in CORPUS.names if name not in ("text", "split")]


@dataclass(frozen=True, slots=True)
class _Segment:
    """What is kept of a segment while others are looked at: not its words, which are the most of it."""

    row: dict[str, Any]  # of the corpus table, _ROW
    gaps: list[tuple[float, float]]  # without any surface
    chunks: dict[str, PlannedChunk]  # by chunk_id


def cut_chunks(
    corpus: Path,
    alignments: Path,
    glossary: Path,
    alt2main: Path,
    ambiguous_aliases: Path,
    dropped_aliases: Path,
    output: Path,
    *,
    context_s: float,
    context_jitter_s: float,
    min_term_s: float,
    max_term_s: float,
    no_term_ratio: float,
    max_no_term_per_recording: int | None,
    seed: int,
    max_rejected_fraction: float,
) -> None:
    """Write the CHUNKS table of one shard.

    A term chunk for every mention; then no-term chunks, at most one a segment and `max_no_term_per_recording`, with
    the lengths that term chunks have, up to `no_term_ratio` as many. What a chunk touches of a term under any of its
    names, dropped aliases too, is listed in touched_terms. Rejected (unit: planned chunks): term_too_short,
    term_too_long, untrusted_times (the aligner did not know how the term, or a word beside it, is pronounced).
    """
    surfaces = {main: main for main in read_json(glossary)} | read_json(alt2main)
    finder = MentionFinder(surfaces, read_json(ambiguous_aliases), read_json(dropped_aliases))
    with StageTable(
        output, CHUNKS, unit="chunks", max_rejected_fraction=max_rejected_fraction, rows_per_group=256
    ) as table:
        segments = []
        for row, words in _aligned(corpus, alignments):
            names = list(finder.find_names([word["word"] for word in words]))
            occurrences = finder.surfaces_of(names)
            terms, surfaces_heard = timed(finder.choose(occurrences), words), timed(occurrences, words)
            names_heard = timed(names, words)
            chunks = {}
            for number, term in enumerate(terms):
                table.rejected.input += 1
                chunk_id = f"{row['segment_id']}-t{number:03d}"
                if problem := _times_problem(term, min_term_s, max_term_s):
                    table.reject(chunk_id, *problem)
                    continue
                contexts = jittered(context_s, context_jitter_s, random_of(seed, chunk_id))
                chunk = term_chunk(term, terms, words, row["duration_s"], contexts)
                chunks[chunk_id] = with_touched(chunk, names_heard, _named(chunk, finder))
            segments.append(_Segment(row, free_gaps(surfaces_heard, words, row["duration_s"]), chunks))
        _plan_no_term_chunks(segments, alignments, finder, no_term_ratio, max_no_term_per_recording, seed)
        total = sum(len(segment.chunks) for segment in segments)
        for chunk_id, segment, flac in progress(_slices(segments), total=total, unit="chunks"):
            chunk = segment.chunks[chunk_id]
            table.rejected.input += chunk.term is None
            table.keep(_row(chunk_id, segment.row, chunk, flac))
        logging.info("%d chunks of %d segments", table.rejected.kept, len(segments))


def _times_problem(term: SpokenTerm, min_term_s: float, max_term_s: float) -> tuple[str, str] | None:
    length_s = term.end_s - term.start_s
    if not min_term_s <= length_s <= max_term_s:
        reason = "term_too_short" if length_s < min_term_s else "term_too_long"
        return reason, f"{term.term!r} lasts {length_s:.3f} s; allowed are {min_term_s} to {max_term_s}"
    if not term.trusted:
        return "untrusted_times", f"{term.term!r} holds, or stands beside, a word that the aligner could not pronounce"
    return None


def _aligned(corpus: Path, alignments: Path) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(corpus row, aligned words) of every aligned segment; both tables are in one order."""
    aligned = iterate_rows(alignments, columns=["segment_id", "words"])
    found = next(aligned, None)
    for row in iterate_rows(corpus, columns=_ROW):
        if found is not None and found["segment_id"] == row["segment_id"]:
            yield row, found["words"]
            found = next(aligned, None)
    if found is not None:
        raise InputError(f"{alignments}: {found['segment_id']!r} is not in {corpus}; run the stage align again")


def _plan_no_term_chunks(
    segments: list[_Segment],
    alignments: Path,
    finder: MentionFinder,
    ratio: float,
    per_recording: int | None,
    seed: int,
) -> None:
    """Add at most one no-term chunk a segment; of the segments with room for a length, the lowest hash takes it.

    With `per_recording`, only so many segments of a recording can take one: those with the most room.
    """
    term_lengths = [chunk.duration_s for segment in segments for chunk in segment.chunks.values()]
    rooms = [max((end - start for start, end in segment.gaps), default=0.0) for segment in segments]
    by_room = sorted(range(len(segments)), key=lambda index: -rooms[index])
    if per_recording is not None:
        used: Counter[str] = Counter()
        for index in by_room:
            recording_id = segments[index].row["recording_id"]
            used[recording_id] += 1
            if used[recording_id] > per_recording:
                rooms[index] = 0.0
        by_room.sort(key=lambda index: -rooms[index])
    candidates: list[tuple[float, int, np.random.Generator]] = []
    roomy = 0
    taken: dict[str, tuple[_Segment, PlannedChunk]] = {}
    for length_s in no_term_lengths(term_lengths, rooms, ratio):
        while roomy < len(by_room) and rooms[by_room[roomy]] >= length_s:
            random = random_of(seed, segments[by_room[roomy]].row["segment_id"])
            heapq.heappush(candidates, (random.random(), by_room[roomy], random))
            roomy += 1
        _, index, random = heapq.heappop(candidates)
        segment = segments[index]
        taken[segment.row["segment_id"]] = segment, no_term_chunk(length_s, segment.gaps, random)
    for row in iterate_rows(alignments, columns=["segment_id", "words"]):
        if row["segment_id"] in taken:
            segment, chunk = taken[row["segment_id"]]
            chunk = with_text(chunk, row["words"])
            names_heard = timed(finder.find_names([word["word"] for word in row["words"]]), row["words"])
            segment.chunks[f"{row['segment_id']}-n000"] = with_touched(chunk, names_heard, _named(chunk, finder))


def _named(chunk: PlannedChunk, finder: MentionFinder) -> set[str]:
    """The main terms that the chunk's text names: it may join words between which an unknown one was spoken."""
    return {mention.main_term for mention in finder.find_names(chunk.text.split())}


def _slices(segments: list[_Segment]) -> Iterator[tuple[str, _Segment, bytes]]:
    """(chunk_id, segment, audio) of each planned chunk. Every recording is decoded once, front to back."""
    for source, group in itertools.groupby(segments, key=lambda segment: AudioSource.of(segment.row)):
        placed = [
            (segment.row["offset_s"] + chunk.start_s, segment.row["offset_s"] + chunk.end_s, chunk_id, segment)
            for segment in group
            for chunk_id, chunk in segment.chunks.items()
        ]
        if not placed:
            continue
        placed.sort(key=lambda place: place[:3])
        spans = read_spans(source, [place[:2] for place in placed])
        for (_, _, chunk_id, segment), samples in zip(placed, spans, strict=True):
            yield chunk_id, segment, encode_flac(samples)


def _row(chunk_id: str, row: dict[str, Any], chunk: PlannedChunk, flac: bytes) -> dict[str, Any]:
    return {
        "chunk_id": chunk_id,
        "segment_id": row["segment_id"],
        "recording_id": row["recording_id"],
        "speaker_id": row["speaker_id"],
        "term": chunk.term.term if chunk.term else None,
        "main_term": chunk.term.main_term if chunk.term else None,
        "has_term": chunk.term is not None,
        "other_terms": list(chunk.other_terms),
        "touched_terms": list(chunk.touched_terms),
        "text": chunk.text,
        "language": row["language"],
        "start_s": chunk.start_s,
        "end_s": chunk.end_s,
        "term_start_s": chunk.term.start_s if chunk.term else None,
        "term_end_s": chunk.term.end_s if chunk.term else None,
        "sample_rate": SAMPLE_RATE,
        "audio": {"bytes": flac, "path": f"{chunk_id}.flac"},
    }
