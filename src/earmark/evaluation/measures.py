"""The figures of a retrieval evaluation, each from plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

RECALL_AT = (1, 5, 10, 20)
_INTERVAL = (2.5, 97.5)  # percentiles: 95 %


def recall_and_mrr(ranks: np.ndarray, speakers: np.ndarray, terms: int, resamples: int, seed: int) -> dict[str, Any]:
    """Recall@K and MRR of ranks[n] (from 1) among `terms` main terms, with 95 % bootstrap intervals.

    {n, recall@K: {value, low, high, chance}, mrr: {value, low, high}}; with n = 0 the figures are null, with a
    reason. Chunks are resampled within each speaker: the intervals say what other utterances of these speakers would
    give, not what other speakers would.
    """
    if not len(ranks):
        return {"n": 0, "reason": "no such chunk in this split"}
    draws = _resample(speakers, resamples, seed)
    report: dict[str, Any] = {"n": len(ranks)}
    for k in RECALL_AT:
        report[f"recall@{k}"] = {**_interval((ranks <= k).astype(float), draws), "chance": min(1.0, k / terms)}
    report["mrr"] = _interval(1 / ranks, draws)
    return report


def _resample(groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """draws[resamples, n]: indices drawn with replacement, as many from each group as it has."""
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return np.concatenate([random.choice(rows, (resamples, len(rows))) for rows in members], axis=1)


def _interval(values: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(values[draws].mean(axis=1), _INTERVAL)
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def rejection_threshold(no_term_scores: np.ndarray, false_acceptance: float) -> float:
    """The lowest threshold at which at most `false_acceptance` of no-term chunks score above it."""
    allowed = int(np.floor(false_acceptance * len(no_term_scores)))
    descending = np.sort(no_term_scores)[::-1]
    return float(descending[allowed]) if allowed < len(descending) else -np.inf


def rejection(threshold: float, no_term_scores: np.ndarray, term_scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """What rejecting chunks whose best score is not above `threshold` does to no-term chunks and to term chunks.

    `term_scores` are the best scores of each group of term chunks. Figures of an empty group are null.
    """
    accepted = float((no_term_scores > threshold).mean()) if len(no_term_scores) else None
    groups = {}
    for name, scores in term_scores.items():
        both = len(scores) and len(no_term_scores)
        groups[name] = {
            "n": len(scores),
            "false_rejection": float((scores <= threshold).mean()) if len(scores) else None,
            "auroc": auroc(scores, no_term_scores) if both else None,
        }
    return {
        "n_no_term": len(no_term_scores),
        "false_acceptance": accepted,
        "rejected_no_term": None if accepted is None else 1 - accepted,
        "term_chunks": groups,
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half."""
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))
