"""Evaluating what one would do without a retriever: transcribe a chunk with Whisper, look for the terms in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from earmark.artifacts import iterate_rows
from earmark.errors import InputError
from earmark.evaluation.ranked import Scorer, Settings, write_figures
from earmark.evaluation.transcript_match import Pronounce, TranscriptMatcher
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces


def evaluate_transcripts(
    transcripts: list[Path],
    splits: Path,
    glossary: Path,
    alt2main: Path,
    metrics: Path,
    predictions: Path,
    *,
    pronounce: Pronounce | None,
    settings: Settings,
    threads: int,
) -> None:
    """Write the figures of `ranked.write_figures` for fuzzy matching in `transcripts` (shards of TRANSCRIPTS).

    By letters, or by phonemes with `pronounce`. InputError if a split has no chunk with a transcript.
    """
    texts = {row["chunk_id"]: row["text"] for path in transcripts for row in iterate_rows(path)}
    rows = {split: read_split(splits / f"{split}.parquet") for split in ("dev", "test")}
    kept = {split: [row for row in group if row.chunk_id in texts] for split, group in rows.items()}
    if empty := [split for split, group in kept.items() if not group]:
        raise InputError(f"{splits}/{empty[0]}.parquet: no chunk with a transcript to evaluate on")

    def way(surfaces: Mapping[str, str]) -> Scorer:
        matcher = TranscriptMatcher(list(surfaces), pronounce, threads)

        def scores(batch: Sequence[SplitRow]) -> np.ndarray:
            return matcher.scores([texts[row.chunk_id] for row in batch])

        return Scorer(list(surfaces.values()), scores)

    left_out = {split: [row for row in group if row.chunk_id not in texts] for split, group in rows.items()}
    write_figures(way, kept, read_surfaces(glossary, alt2main), splits, metrics, predictions, settings, left_out)
