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

from earmark.artifacts import CHUNKS, StageTable, iterate_rows, read_json
from earmark.audio import SAMPLE_RATE, AudioSource, encode_flac, read_spans
from earmark.chunks.mentions import MentionFinder
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
)
from earmark.errors import InputError
from earmark.logs import progress


@dataclass(frozen=True)
class _Segment:
    row: dict[str, Any]  # of the corpus table
    words: list[dict[str, Any]]
    terms: list[SpokenTerm]  # the mentions
    occurrences: list[SpokenTerm]  # of all surfaces, those inside or across longer ones and ambiguous aliases too


def cut_chunks(
    corpus: Path,
    alignments: Path,
    glossary: Path,
    alt2main: Path,
    ambiguous_aliases: Path,
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
    the lengths that term chunks have, up to `no_term_ratio` as many. Rejected (unit: planned chunks): term_too_short,
    term_too_long, untrusted_times (the aligner did not know how the term, or a word beside it, is pronounced).
    """
    surfaces = {main: main for main in read_json(glossary)} | read_json(alt2main)
    finder, wider = MentionFinder(surfaces), MentionFinder(surfaces | read_json(ambiguous_aliases))
    segments = _aligned_segments(corpus, alignments, finder, wider)
    with StageTable(
        output, CHUNKS, unit="chunks", max_rejected_fraction=max_rejected_fraction, rows_per_group=256
    ) as table:
        plans: dict[str, list[PlannedChunk]] = {}
        for segment in segments:
            kept = plans[segment.row["segment_id"]] = []
            for number, term in enumerate(segment.terms):
                table.rejected.input += 1
                chunk_id = _chunk_id(segment, "t", number)
                if problem := _times_problem(term, min_term_s, max_term_s):
                    table.reject(chunk_id, *problem)
                    continue
                contexts = jittered(context_s, context_jitter_s, random_of(seed, chunk_id))
                kept.append(
                    term_chunk(
                        term, segment.terms, segment.occurrences, segment.words, segment.row["duration_s"], contexts
                    )
                )
        _plan_no_term_chunks(segments, plans, no_term_ratio, max_no_term_per_recording, seed)
        total = sum(map(len, plans.values()))
        for segment, chunk, flac in progress(_slices(segments, plans), total=total, unit="chunks"):
            if chunk.term is None:
                table.rejected.input += 1
            table.keep(_row(segment, chunk, flac))
        logging.info("%d chunks of %d segments", table.rejected.kept, len(segments))


def _times_problem(term: SpokenTerm, min_term_s: float, max_term_s: float) -> tuple[str, str] | None:
    length_s = term.end_s - term.start_s
    if not min_term_s <= length_s <= max_term_s:
        reason = "term_too_short" if length_s < min_term_s else "term_too_long"
        return reason, f"{term.term!r} lasts {length_s:.3f} s; allowed are {min_term_s} to {max_term_s}"
    if not term.trusted:
        return "untrusted_times", f"{term.term!r} holds, or stands beside, a word that the aligner could not pronounce"
    return None


def _aligned_segments(corpus: Path, alignments: Path, finder: MentionFinder, wider: MentionFinder) -> list[_Segment]:
    words_of = {row["segment_id"]: row["words"] for row in iterate_rows(alignments, columns=["segment_id", "words"])}
    segments = []
    for row in iterate_rows(corpus):
        words = words_of.pop(row["segment_id"], None)
        if words is not None:
            spoken = [word["word"] for word in words]
            segments.append(
                _Segment(row, words, timed(finder.find(spoken), words), timed(wider.find_all(spoken), words))
            )
    if words_of:
        raise InputError(f"{alignments}: {next(iter(words_of))!r} is not in {corpus}; run the stage align again")
    return segments


def _plan_no_term_chunks(
    segments: list[_Segment],
    plans: dict[str, list[PlannedChunk]],
    ratio: float,
    per_recording: int | None,
    seed: int,
) -> None:
    """Add at most one no-term chunk a segment; of the segments with room for a length, the lowest hash takes it.

    With `per_recording`, only so many segments of a recording can take one: those with the most room.
    """
    term_lengths = [chunk.duration_s for chunks in plans.values() for chunk in chunks]
    gaps = [free_gaps(segment.occurrences, segment.words, segment.row["duration_s"]) for segment in segments]
    rooms = [max((end - start for start, end in found), default=0.0) for found in gaps]
    by_room = sorted(range(len(segments)), key=lambda index: -rooms[index])
    if per_recording is not None:
        used: Counter[str] = Counter()
        for index in by_room:
            recording_id = segments[index].row["recording_id"]
            used[recording_id] += 1
            if used[recording_id] > per_recording:
                rooms[index] = 0.0
        by_room.sort(key=lambda index: -rooms[index])
    randoms = [random_of(seed, segment.row["segment_id"]) for segment in segments]
    candidates: list[tuple[float, int]] = []
    roomy = 0
    for length_s in no_term_lengths(term_lengths, rooms, ratio):
        while roomy < len(by_room) and rooms[by_room[roomy]] >= length_s:
            heapq.heappush(candidates, (randoms[by_room[roomy]].random(), by_room[roomy]))
            roomy += 1
        index = heapq.heappop(candidates)[1]
        chunk = no_term_chunk(length_s, gaps[index], segments[index].words, randoms[index])
        plans[segments[index].row["segment_id"]].append(chunk)


def _slices(
    segments: list[_Segment], plans: dict[str, list[PlannedChunk]]
) -> Iterator[tuple[_Segment, PlannedChunk, bytes]]:
    """Each planned chunk with its audio. Every recording is decoded once, front to back."""
    for source, group in itertools.groupby(segments, key=lambda segment: AudioSource.of(segment.row)):
        placed = [
            (segment.row["offset_s"] + chunk.start_s, segment.row["offset_s"] + chunk.end_s, segment, chunk)
            for segment in group
            for chunk in plans[segment.row["segment_id"]]
        ]
        placed.sort(key=lambda place: place[:2])
        spans = read_spans(source, [place[:2] for place in placed])
        for (_, _, segment, chunk), samples in zip(placed, spans, strict=True):
            yield segment, chunk, encode_flac(samples)


def _chunk_id(segment: _Segment, kind: str, number: int) -> str:
    return f"{segment.row['segment_id']}-{kind}{number:03d}"


def _row(segment: _Segment, chunk: PlannedChunk, flac: bytes) -> dict[str, Any]:
    number = segment.terms.index(chunk.term) if chunk.term else 0
    chunk_id = _chunk_id(segment, "t" if chunk.term else "n", number)
    return {
        "chunk_id": chunk_id,
        "segment_id": segment.row["segment_id"],
        "recording_id": segment.row["recording_id"],
        "speaker_id": segment.row["speaker_id"],
        "term": chunk.term.term if chunk.term else None,
        "main_term": chunk.term.main_term if chunk.term else None,
        "has_term": chunk.term is not None,
        "other_terms": list(chunk.other_terms),
        "touched_terms": list(chunk.touched_terms),
        "text": chunk.text,
        "language": segment.row["language"],
        "start_s": chunk.start_s,
        "end_s": chunk.end_s,
        "term_start_s": chunk.term.start_s if chunk.term else None,
        "term_end_s": chunk.term.end_s if chunk.term else None,
        "sample_rate": SAMPLE_RATE,
        "audio": {"bytes": flac, "path": f"{chunk_id}.flac"},
    }
