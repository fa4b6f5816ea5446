"""Evaluating a term retriever on the dev and test splits."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from earmark.errors import InputError
from earmark.evaluation.ranked import HeldOut, Scorer, Settings, write_figures, write_rankings
from earmark.retrieval.chunk_frames import ChunkFrames, cached_frames, rows_with_frames
from earmark.retrieval.index import TermIndex, index_surfaces, load_index
from earmark.retrieval.model import TermRetriever, hear, load_retriever
from earmark.retrieval.split_rows import SplitRow, read_split, read_surfaces


@dataclass(frozen=True)
class Fold:
    """A retriever that has not heard the speakers of `held_out` (SPLITS), trained as the one that is evaluated."""

    model: Path
    index: Path
    held_out: Path


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
    folds: Sequence[Fold] = (),
    held_out_chunks: int = 0,
) -> None:
    """Write the figures of `ranked.write_figures` for a retriever and its index.

    `candidates` are brought back for a chunk by the index's search; a term that is not among them ranks last. Of all
    `folds` together, at most `held_out_chunks` chunks with a term and as many without one, drawn by hash, help to set
    the threshold. InputError if a split has no chunk with features.
    """
    torch.set_num_threads(threads)
    retriever = load_retriever(model)
    built = load_index(index, retriever)
    of_glossary = read_surfaces(glossary, alt2main)
    # The glossary's that could not be indexed are missed; those that were added to the index compete.
    surfaces = {**of_glossary, **_surfaces(built)}
    rows = {split: read_split(splits / f"{split}.parquet") for split in ("dev", "test")}
    held_out = _drawn([read_split(fold.held_out) for fold in folds], held_out_chunks)
    heard = {row.chunk_id for group in (*rows.values(), *held_out) for row in group}
    with cached_frames(features, heard) as frames:
        kept = {split: _usable(group, frames, splits, split) for split, group in rows.items()}

        def way(of: TermRetriever, own: TermIndex, larger: Mapping[str, str]) -> Scorer:
            same = larger == {**of_glossary, **_surfaces(own)}
            found = own if same else index_surfaces(of, larger, background=own.background)[0]
            return Scorer(found.main_terms, lambda batch: _scores(of, frames, found, candidates, batch))

        def way_of_fold(fold: Fold, larger: Mapping[str, str]) -> Scorer:
            other = load_retriever(fold.model)  # anew for each glossary: a large one is not to lie beside all others
            return way(other, load_index(fold.index, other), larger)

        apart = [
            HeldOut(partial(way_of_fold, fold), rows_with_frames(group, frames, fold.held_out))
            for fold, group in zip(folds, held_out, strict=True)
        ]
        left_out = {split: [row for row in group if row.chunk_id not in frames] for split, group in rows.items()}
        write_figures(
            partial(way, retriever, built), kept, surfaces, splits, metrics, predictions, settings, left_out, apart
        )


def _surfaces(index: TermIndex) -> dict[str, str]:
    return dict(zip(index.surfaces, index.main_terms, strict=True))


def _drawn(groups: Sequence[Sequence[SplitRow]], count: int) -> list[list[SplitRow]]:
    """The `count` rows with a term, and as many without one, whose ids have the lowest hashes, in their groups."""
    drawn: set[str] = set()
    for has_term in (True, False):
        ids = (row.chunk_id for group in groups for row in group if row.has_term is has_term)
        drawn.update(heapq.nsmallest(count, ids, key=lambda name: blake2b(name.encode(), digest_size=8).digest()))
    return [[row for row in group if row.chunk_id in drawn] for group in groups]


def rank_chunks(
    model: Path,
    features: list[Path],
    chunks: Path,
    index: Path,
    rankings: Path,
    *,
    top_k: int,
    candidates: int,
    threads: int,
) -> None:
    """Write what a retriever ranks first (RANKINGS) for each chunk of a table (SPLITS).

    The terms of `index` are ranked as `evaluate_retriever` does it; `top_k` of a chunk are kept. A chunk without
    features has no row. InputError if none has any.
    """
    torch.set_num_threads(threads)
    retriever = load_retriever(model)
    built = load_index(index, retriever)
    rows = read_split(chunks)
    with cached_frames(features, {row.chunk_id for row in rows}) as frames:
        kept = rows_with_frames(rows, frames, chunks)
        scorer = Scorer(built.main_terms, lambda batch: _scores(retriever, frames, built, candidates, batch))
        write_rankings(scorer, kept, top_k, rankings)


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
