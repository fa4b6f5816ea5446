"""Cutting the chunks of one shard: plan from the alignments, then decode each recording once and slice it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earmark.artifacts import CHUNKS, StageTable, iterate_rows, read_json
from earmark.audio import SAMPLE_RATE, encode_flac, read_audio, slice_samples
from earmark.chunks.mentions import MentionFinder
from earmark.chunks.plan import PlannedChunk, SpokenTerm, no_term_chunk, segment_random, spoken_terms, term_chunk
from earmark.errors import InputError
from earmark.logs import progress


@dataclass(frozen=True)
class _Segment:
    row: dict[str, Any]  # of the corpus table
    words: list[dict[str, Any]]
    terms: list[SpokenTerm]


def cut_chunks(
    corpus: Path,
    alignments: Path,
    glossary: Path,
    alt2main: Path,
    output: Path,
    *,
    context_s: float,
    min_term_s: float,
    max_term_s: float,
    no_term_ratio: float,
    seed: int,
    max_rejected_fraction: float,
) -> None:
    """Write the CHUNKS table of one shard.

    A term chunk for every mention; then no-term chunks, at most one a segment, whose lengths are drawn from the term
    chunks', until there are `no_term_ratio` as many. Segments are tried in the order of a hash of their id. Rejected
    (unit: planned chunks): term_too_short, term_too_long.
    """
    surfaces = {main: main for main in read_json(glossary)} | read_json(alt2main)
    segments = _aligned_segments(corpus, alignments, MentionFinder(surfaces))
    with StageTable(
        output, CHUNKS, unit="chunks", max_rejected_fraction=max_rejected_fraction, rows_per_group=256
    ) as table:
        plans: dict[str, list[PlannedChunk]] = {}
        for segment in segments:
            kept = plans[segment.row["segment_id"]] = []
            for number, term in enumerate(segment.terms):
                table.rejected.input += 1
                length_s = term.end_s - term.start_s
                if min_term_s <= length_s <= max_term_s:
                    kept.append(term_chunk(term, segment.terms, segment.words, segment.row["duration_s"], context_s))
                    continue
                reason = "term_too_short" if length_s < min_term_s else "term_too_long"
                detail = f"{term.term!r} lasts {length_s:.3f} s; allowed are {min_term_s} to {max_term_s}"
                table.reject(_chunk_id(segment, "t", number), reason, detail)
        _plan_no_term_chunks(segments, plans, no_term_ratio, seed)
        total = sum(map(len, plans.values()))
        for segment, chunk, flac in progress(_slices(segments, plans), total=total, unit="chunks"):
            if chunk.term is None:
                table.rejected.input += 1
            table.keep(_row(segment, chunk, flac))
        logging.info("%d chunks of %d segments", table.rejected.kept, len(segments))


def _aligned_segments(corpus: Path, alignments: Path, finder: MentionFinder) -> list[_Segment]:
    words_of = {row["segment_id"]: row["words"] for row in iterate_rows(alignments, columns=["segment_id", "words"])}
    segments = []
    for row in iterate_rows(corpus):
        words = words_of.pop(row["segment_id"], None)
        if words is not None:
            segments.append(_Segment(row, words, spoken_terms(words, finder)))
    if words_of:
        raise InputError(f"{alignments}: {next(iter(words_of))!r} is not in {corpus}; run the stage align again")
    return segments


def _plan_no_term_chunks(
    segments: list[_Segment], plans: dict[str, list[PlannedChunk]], ratio: float, seed: int
) -> None:
    lengths = [chunk.duration_s for chunks in plans.values() for chunk in chunks]
    wanted = round(ratio * len(lengths))
    randoms = [(segment_random(seed, segment.row["segment_id"]), segment) for segment in segments]
    for random, segment in sorted(((r, s) for r, s in randoms), key=lambda pair: pair[0].random()):
        if wanted <= 0:
            break
        chunk = no_term_chunk(random.choice(lengths), segment.terms, segment.words, segment.row["duration_s"], random)
        if chunk is not None:
            plans[segment.row["segment_id"]].append(chunk)
            wanted -= 1


def _slices(
    segments: list[_Segment], plans: dict[str, list[PlannedChunk]]
) -> Iterator[tuple[_Segment, PlannedChunk, bytes]]:
    for audio_path, group in itertools.groupby(segments, key=lambda s: s.row["audio_path"]):
        samples = None
        for segment in group:
            for chunk in plans[segment.row["segment_id"]]:
                if samples is None:
                    samples = read_audio(Path(audio_path))
                offset_s = segment.row["offset_s"]
                piece = slice_samples(samples, offset_s + chunk.start_s, offset_s + chunk.end_s)
                yield segment, chunk, encode_flac(piece)


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
        "text": chunk.text,
        "language": segment.row["language"],
        "start_s": chunk.start_s,
        "end_s": chunk.end_s,
        "term_start_s": chunk.term.start_s if chunk.term else None,
        "term_end_s": chunk.term.end_s if chunk.term else None,
        "sample_rate": SAMPLE_RATE,
        "audio": {"bytes": flac, "path": f"{chunk_id}.flac"},
    }
