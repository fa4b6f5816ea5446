"""The embedded aligner: PocketSphinx over the segments of one shard, spread over processes."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from earmark.alignment.intervals import WordInterval, clip_intervals, intervals_problem, words_problem
from earmark.alignment.pocketsphinx_aligner import PocketSphinxAligner
from earmark.artifacts import ALIGNMENTS, StageTable, iterate_rows
from earmark.audio import read_audio, slice_samples
from earmark.errors import EarmarkError
from earmark.logs import progress

# segment_id, samples[n] at 16 kHz, duration_s, words
Task = tuple[str, np.ndarray, float, list[str]]
# segment_id, aligned words, (reason, detail) of a rejection
Result = tuple[str, list[WordInterval], tuple[str, str] | None]

TASKS_AHEAD = 8  # per worker; their audio is in memory

_aligner: PocketSphinxAligner | None = None  # one per worker process


def align_shard(
    corpus: Path, output: Path, *, lexicon: Path | None, seed: int, threads: int, max_rejected_fraction: float
) -> None:
    """Write the ALIGNMENTS table of one corpus shard.

    Rejected: unknown_word (no pronunciation), not_aligned (no path through the audio), words_differ (the aligner
    returned other words than the transcript's), bad_interval.
    """
    PocketSphinxAligner(lexicon, seed)  # a broken lexicon is reported here, not by every worker
    rows = list(iterate_rows(corpus))  # without audio: a few hundred bytes a segment
    with (
        StageTable(output, ALIGNMENTS, unit="segments", max_rejected_fraction=max_rejected_fraction) as table,
        # Forked workers would inherit the parent's open writer and locks; spawned ones start clean.
        ProcessPoolExecutor(
            threads, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(lexicon, seed)
        ) as pool,
    ):
        results = _aligned(pool, _tasks(rows), threads * TASKS_AHEAD)
        for segment_id, words, problem in progress(results, total=len(rows), unit="segments"):
            table.rejected.input += 1
            if problem:
                table.reject(segment_id, *problem)
                continue
            table.keep(
                {
                    "segment_id": segment_id,
                    "aligner": PocketSphinxAligner.name,
                    "status": "aligned",
                    "words": [word.as_row() for word in words],
                }
            )
        logging.info("%d of %d segments aligned", table.rejected.kept, table.rejected.input)


def _aligned(pool: ProcessPoolExecutor, tasks: Iterator[Task], ahead: int) -> Iterator[Result]:
    """Results in the order of `tasks`, of which no more than `ahead` are under way. EarmarkError if a worker dies."""
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(_align, task))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise EarmarkError(
            "an aligner process was killed, most likely for memory; give the job more memory, or lower align.threads"
        ) from None


def _tasks(rows: list[dict[str, Any]]) -> Iterator[Task]:
    """Each recording is decoded once; its segments are sliced in memory."""
    for audio_path, group in itertools.groupby(rows, key=lambda row: row["audio_path"]):
        samples = read_audio(Path(audio_path))
        for row in group:
            end_s = row["offset_s"] + row["duration_s"]
            yield (
                row["segment_id"],
                slice_samples(samples, row["offset_s"], end_s),
                row["duration_s"],
                row["text"].split(),
            )


def _start_worker(lexicon: Path | None, seed: int) -> None:
    global _aligner
    _aligner = PocketSphinxAligner(lexicon, seed)


def _align(task: Task) -> Result:
    assert _aligner is not None
    segment_id, samples, duration_s, transcript = task
    if unknown := _aligner.unknown_words(transcript):
        detail = f"no pronunciation for {', '.join(unknown[:10])}; add it to align.lexicon"
        return segment_id, [], ("unknown_word", detail)
    words = clip_intervals(_aligner.align(samples, transcript), duration_s)
    if not words:
        return (
            segment_id,
            [],
            ("not_aligned", f"no path through {duration_s:.2f} s of audio for {len(transcript)} words"),
        )
    if problem := words_problem([word.word for word in words], transcript):
        return segment_id, [], ("words_differ", problem)
    if problem := intervals_problem(words, duration_s):
        return segment_id, [], ("bad_interval", problem)
    return segment_id, words, None
