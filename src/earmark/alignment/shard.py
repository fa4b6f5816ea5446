"""Aligning one shard with any aligner: what it returns is checked here, in one place for all."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from earmark.alignment.aligner import Aligner, Alignment, Failure, Utterance
from earmark.alignment.intervals import UNKNOWN, compare_words, intervals_problem, normalised, without_rounding
from earmark.artifacts import ALIGNMENTS, StageTable, iterate_rows, table_counts
from earmark.logs import progress


def align_shard(
    corpus: Path, output: Path, aligner: Aligner, *, max_differing_words: float, max_rejected_fraction: float
) -> None:
    """Write the ALIGNMENTS table of one corpus shard, in the order of the corpus table.

    Rejected, besides what the aligner fails on: not_aligned (no word came back), words_differ (from the transcript's,
    in a larger share than `max_differing_words`), bad_interval (unordered, overlapping, empty or outside the segment).
    """
    pending: deque[Utterance] = deque()  # given to the aligner, not yet answered

    def utterances() -> Iterator[Utterance]:
        for row in iterate_rows(corpus):
            pending.append(Utterance.of(row))
            yield pending[-1]

    differing = 0
    with StageTable(output, ALIGNMENTS, unit="segments", max_rejected_fraction=max_rejected_fraction) as table:
        results = progress(aligner.align(utterances()), total=table_counts(corpus)["kept"], unit="segments")
        for result in results:
            utterance = pending.popleft()
            if result.segment_id != utterance.segment_id:
                raise AssertionError(f"{aligner.name} answered {result.segment_id}, not {utterance.segment_id}")
            table.rejected.input += 1
            row = _row(result, utterance, max_differing_words) if isinstance(result, Alignment) else result
            if isinstance(row, Failure):
                table.reject(row.segment_id, row.reason, row.detail)
            else:
                differing += row["status"] == "words_differ"
                table.keep(row | {"aligner": aligner.name})
        if pending:
            raise AssertionError(f"{aligner.name} did not answer for {pending[0].segment_id}")
        logging.info(
            "%d of %d segments aligned, %d of them with other words than the transcript's",
            table.rejected.kept, table.rejected.input, differing,
        )  # fmt: skip


def _row(result: Alignment, utterance: Utterance, max_differing_words: float) -> dict | Failure:
    compared = compare_words(normalised(result.words), utterance.words, utterance.duration_s)
    words = without_rounding(compared.words, utterance.duration_s)
    if all(word.word == UNKNOWN for word in words):
        detail = f"no word came back for {len(utterance.words)} in {utterance.duration_s:.2f} s of audio"
        return Failure(utterance.segment_id, "not_aligned", detail)
    if compared.problem and compared.differing > max_differing_words * len(utterance.words):
        detail = f"{compared.differing} of {len(utterance.words)} words differ: {compared.problem}"
        return Failure(utterance.segment_id, "words_differ", detail)
    if problem := intervals_problem(words, utterance.duration_s):
        return Failure(utterance.segment_id, "bad_interval", problem)
    return {
        "segment_id": utterance.segment_id,
        "status": "words_differ" if compared.problem else "aligned",
        "quality": result.quality,
        "words": [word.as_row() for word in words],
    }
