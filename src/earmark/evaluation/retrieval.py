"""Evaluating a term retriever on the dev and test splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from earmark.errors import InputError
from earmark.evaluation.ranked import Scorer, Settings, write_figures
from earmark.retrieval.chunk_frames import ChunkFrames, cached_frames, rows_with_frames
from earmark.retrieval.index import TermIndex, index_surfaces, load_index
from earmark.retrieval.model import TermRetriever, hear, load_retriever
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces


def evaluate_retriever(
    model: Path,
    features: list[Path],
    splits: Path,
    glossary: Path,
    alt2main: Path,
    index: Path,
    metrics: Path,
    predictions: Path,
    *,
    settings: Settings,
    candidates: int,
    threads: int,
) -> None:
    """Write the figures of `ranked.write_figures` for a retriever and its index.

    `candidates` are brought back for a chunk by the index's search; a term that is not among them ranks last.
    InputError if a split has no chunk with features.
    """
    torch.set_num_threads(threads)
    retriever = load_retriever(model)
    built = load_index(index, retriever)
    # The glossary's that could not be indexed are missed; those that were added to the index compete.
    surfaces = {**read_surfaces(glossary, alt2main), **dict(zip(built.surfaces, built.main_terms, strict=True))}
    rows = {split: read_split(splits / f"{split}.parquet") for split in ("dev", "test")}
    with cached_frames(features, {row.chunk_id for group in rows.values() for row in group}) as frames:
        kept = {split: _usable(group, frames, splits, split) for split, group in rows.items()}

        def way(larger: Mapping[str, str]) -> Scorer:
            found = built if larger == surfaces else index_surfaces(retriever, larger, background=built.background)[0]
            return Scorer(found.main_terms, lambda batch: _scores(retriever, frames, found, candidates, batch))

        left_out = {split: len(rows[split]) - len(group) for split, group in kept.items()}
        write_figures(way, kept, surfaces, splits, metrics, predictions, settings, left_out)


def _scores(
    model: TermRetriever, frames: ChunkFrames, index: TermIndex, candidates: int, rows: Sequence[SplitRow]
) -> np.ndarray:
    clips, lengths = frames.batch([row.chunk_id for row in rows])
    with torch.inference_mode():
        return index.scores(hear(model, {"frames": clips, "frame_lengths": lengths}), candidates)


def _usable(rows: Sequence[SplitRow], frames: ChunkFrames, splits: Path, split: str) -> list[SplitRow]:
    path = splits / f"{split}.parquet"
    kept = rows_with_frames(rows, frames, path)
    if not kept:
        raise InputError(
            f"{path}: no chunk with features to evaluate on; give splits.{split}_speakers a larger share, or name more "
            "speakers there"
        )
    return kept
