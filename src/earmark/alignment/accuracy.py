"""Scoring an alignment against known word times (a synthesiser's own, or hand labels)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from earmark.artifacts import iterate_rows, read_table
from earmark.errors import InputError

WITHIN_MS = (20, 50, 100)


def score_alignments(alignments: list[Path], corpus: list[Path], reference: Path) -> dict[str, Any]:
    """Errors of word starts and ends against known ones: {segments_…, all, by_speaker} of `boundary_figures`.

    `reference` is a Parquet table of segment_id and words: list of {word, start_s, end_s}. A segment is compared only
    where both sides hold the same words; how many were not is reported.
    """
    table = read_table(reference)
    if missing := {"segment_id", "words"} - set(table.column_names):
        raise InputError(f"{reference}: lacks the column {sorted(missing)[0]}; expected segment_id and words")
    known = {row["segment_id"]: row["words"] for row in table.to_pylist()}
    speaker_of = {
        row["segment_id"]: row["speaker_id"]
        for path in corpus
        for row in iterate_rows(path, columns=["segment_id", "speaker_id"])
        if row["segment_id"] in known
    }
    errors: dict[str, list[float]] = {}
    compared = differing = unknown = 0
    for path in alignments:
        for row in iterate_rows(path):
            truth = known.get(row["segment_id"])
            if truth is None:
                unknown += 1
                continue
            if [word["word"] for word in truth] != [word["word"] for word in row["words"]]:
                differing += 1
                continue
            compared += 1
            speaker = errors.setdefault(speaker_of[row["segment_id"]], [])
            for found, right in zip(row["words"], truth, strict=True):
                speaker += [found["start_s"] - right["start_s"], found["end_s"] - right["end_s"]]
    if not compared:
        raise InputError(f"{reference}: shares no segment with the alignments; set align.reference to null")
    figures = {
        "segments_compared": compared,
        "segments_without_reference": unknown,
        "segments_with_other_words": differing,
        "all": boundary_figures([error for speaker in errors.values() for error in speaker]),
        "by_speaker": {speaker: boundary_figures(errors[speaker]) for speaker in sorted(errors)},
    }
    logging.info("%d segments: %s", compared, figures["all"])
    return figures


def boundary_figures(errors_s: list[float]) -> dict[str, Any]:
    """Figures of signed boundary errors[n] in seconds: mean and median size in ms, shares within 20, 50, 100 ms."""
    milliseconds = 1000 * np.asarray(errors_s)
    size = np.abs(milliseconds)
    return {
        "boundaries": len(size),
        "mean_ms": round(float(size.mean()), 2),
        "median_ms": round(float(np.median(size)), 2),
        "bias_ms": round(float(milliseconds.mean()), 2),
        **{f"within_{limit}_ms": round(float((size <= limit).mean()), 4) for limit in WITHIN_MS},
    }
