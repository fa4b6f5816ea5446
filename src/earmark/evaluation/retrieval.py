"""Evaluating a term retriever on the dev and test splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from earmark.artifacts import PREDICTIONS, write_json, write_table
from earmark.errors import InputError
from earmark.evaluation.measures import auroc, recall_and_mrr, rejection, rejection_threshold
from earmark.retrieval.chunk_frames import ChunkFrames, cached_frames, rows_with_frames
from earmark.retrieval.index import TermIndex, load_index
from earmark.retrieval.model import TermRetriever, embed_audio, load_retriever
from earmark.retrieval.ranking import TermColumns, rank_of, term_scores
from earmark.retrieval.split_rows import SplitRow, read_split

_BATCH = 64
_GROUPS: dict[str, frozenset[bool | None]] = {
    "all": frozenset({True, False}),
    "seen": frozenset({True}),
    "unseen": frozenset({False}),
}


@dataclass(frozen=True)
class Heard:
    """What the retriever made of one chunk."""

    row: SplitRow
    rank: int | None  # of the spoken main term, from 1; None for a no-term chunk
    top_terms: tuple[str, ...]
    top_scores: tuple[float, ...]


def evaluate(
    model: Path,
    features: list[Path],
    splits: Path,
    index: Path,
    terms: Path,
    metrics: Path,
    predictions: Path,
    *,
    false_acceptance: float,
    bootstrap_resamples: int,
    top_k: int,
    seed: int,
    threads: int,
) -> None:
    """Rank the glossary for every dev and test chunk; write metrics.json and predictions.parquet (PREDICTIONS).

    A main term scores as its best surface. Further terms spoken in a chunk (`other_terms`) are taken out of its ranking
    before the rank of its own term is read: they are neither right nor wrong. (`top_terms` hold them.) Groups:
    `all`, `seen` (the main term is heard in a kept training chunk) and `unseen` terms. The rejection threshold is set
    on dev, so that at most `false_acceptance` (below 1) of its no-term chunks are accepted, and applied to test as it
    is. `duration_auroc` is a control: how well a chunk's length alone tells term chunks from no-term chunks, 0.5 being
    not at all. `without_features` counts the chunks left out because their encoding was rejected. InputError if a split
    has no chunk left; a figure whose chunks are missing is null, or the group has a `reason`.
    """
    torch.set_num_threads(threads)
    retriever = load_retriever(model)
    term_index = load_index(index, terms)
    rows = {split: read_split(splits / f"{split}.parquet") for split in ("dev", "test")}
    with cached_frames(features, {row.chunk_id for group in rows.values() for row in group}) as frames:
        kept = {split: _usable(group, frames, splits, split) for split, group in rows.items()}
        heard = {split: _hear(group, retriever, frames, term_index, top_k) for split, group in kept.items()}
    main_terms = len(set(term_index.main_terms))
    threshold = _threshold(heard["dev"], false_acceptance)
    report: dict[str, Any] = {
        "main_terms": main_terms,
        "surfaces": len(term_index.surfaces),
        "rejection_threshold": threshold,
    }
    for split, results in heard.items():
        report[split] = {
            "without_features": len(rows[split]) - len(results),
            "retrieval": {
                name: _retrieval(results, seen, main_terms, bootstrap_resamples, seed) for name, seen in _GROUPS.items()
            },
            "rejection": _rejection(results, threshold),
        }
    write_table(predictions, _predictions(heard))
    write_json(metrics, report)


def _usable(rows: Sequence[SplitRow], frames: ChunkFrames, splits: Path, split: str) -> list[SplitRow]:
    path = splits / f"{split}.parquet"
    kept = rows_with_frames(rows, frames, path)
    if not kept:
        raise InputError(
            f"{path}: no chunk with features to evaluate on; give splits.{split}_speakers a larger share, or name more "
            "speakers there"
        )
    return kept


def _hear(
    rows: Sequence[SplitRow], model: TermRetriever, frames: ChunkFrames, index: TermIndex, top_k: int
) -> list[Heard]:
    columns = TermColumns.of(index.main_terms)
    heard: list[Heard] = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        with torch.inference_mode():
            audio = embed_audio(model, *frames.batch([row.chunk_id for row in batch])).cpu().numpy()
        scores = term_scores(index.scores(audio), columns)
        heard.extend(_read(row, row_scores, columns, top_k) for row, row_scores in zip(batch, scores, strict=True))
    return heard


def _read(row: SplitRow, scores: np.ndarray, columns: TermColumns, top_k: int) -> Heard:
    if row.main_term is not None and row.main_term not in columns.column_of:
        raise InputError(f"chunk {row.chunk_id}: {row.main_term!r} is not in the index; run the index stage again")
    best = np.argsort(-scores, kind="stable")[:top_k]
    rank = None if row.main_term is None else rank_of(scores, columns, row.main_term, row.other_terms)
    return Heard(row, rank, tuple(columns.terms[i] for i in best), tuple(float(scores[i]) for i in best))


def _threshold(dev: Sequence[Heard], false_acceptance: float) -> float | None:
    scores = np.array([item.top_scores[0] for item in dev if not item.row.has_term])
    return rejection_threshold(scores, false_acceptance) if len(scores) else None


def _retrieval(
    heard: Sequence[Heard], seen: frozenset[bool | None], main_terms: int, resamples: int, seed: int
) -> dict[str, Any]:
    chosen = [item for item in heard if item.row.has_term and item.row.seen_term in seen]
    ranks = np.array([item.rank for item in chosen])
    spoken = np.array([item.row.main_term for item in chosen])
    return recall_and_mrr(ranks, spoken, main_terms, resamples, seed)


def _rejection(heard: Sequence[Heard], threshold: float | None) -> dict[str, Any]:
    durations = {
        has_term: np.array([item.row.duration_s for item in heard if item.row.has_term == has_term])
        for has_term in (True, False)
    }
    control = {"duration_auroc": auroc(durations[True], durations[False])}
    if threshold is None:
        return {"reason": "the dev split has no no-term chunk to set a threshold on", **control}
    no_term = np.array([item.top_scores[0] for item in heard if not item.row.has_term])
    groups = {
        name: np.array([item.top_scores[0] for item in heard if item.row.has_term and item.row.seen_term in seen])
        for name, seen in _GROUPS.items()
    }
    return {**rejection(threshold, no_term, groups), **control}


def _predictions(heard: dict[str, list[Heard]]) -> pa.Table:
    rows = [
        {
            "chunk_id": item.row.chunk_id,
            "split": split,
            "speaker_id": item.row.speaker_id,
            "has_term": item.row.has_term,
            "main_term": item.row.main_term,
            "seen_term": item.row.seen_term,
            "rank": item.rank,
            "top_terms": list(item.top_terms),
            "top_scores": list(item.top_scores),
        }
        for split, results in heard.items()
        for item in results
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)
