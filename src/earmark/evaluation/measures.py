"""The figures of a retrieval evaluation, each from plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

RECALL_AT = (1, 5, 10, 20)
_INTERVAL = (2.5, 97.5)  # percentiles: 95 %


def recall_and_mrr(ranks: np.ndarray, main_terms: np.ndarray, terms: int, resamples: int, seed: int) -> dict[str, Any]:
    """Recall@K and MRR of ranks[n] (from 1) among `terms` main terms, with 95 % bootstrap intervals.

    `main_terms`[n] are the terms that were spoken. {n, recall@K: {value, low, high, chance}, mrr: {value, low, high}};
    with n = 0 the figures are null, with a reason. Terms are resampled, each with all its chunks: one term's chunks
    tend to be found or missed together. So the intervals say what other terms would give, for these speakers; of a
    single term they say nothing.
    """
    if not len(ranks):
        return {"n": 0, "reason": "no such chunk in this split"}
    distinct, term = np.unique(main_terms, return_inverse=True)
    weights = _resample(len(distinct), resamples, seed)
    report: dict[str, Any] = {"n": len(ranks)}
    for k in RECALL_AT:
        report[f"recall@{k}"] = {**_interval((ranks <= k).astype(float), term, weights), "chance": min(1.0, k / terms)}
    report["mrr"] = _interval(1 / ranks, term, weights)
    return report


def _resample(terms: int, resamples: int, seed: int) -> np.ndarray:
    """weights[resamples, terms]: how often each term is drawn when as many as there are are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(terms, np.full(terms, 1 / terms), size=resamples)


def _interval(values: np.ndarray, term: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The mean of values[n], and its interval when the terms, of which chunk i says term[i], are weighted."""
    sums, chunks = np.bincount(term, values), np.bincount(term)
    low, high = np.percentile((weights @ sums) / (weights @ chunks), _INTERVAL)
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def rejection_threshold(no_term_scores: np.ndarray, false_acceptance: float) -> float:
    """The lowest of the no-term chunks' scores[n] above which at most `false_acceptance` (below 1) of them lie.

    It is one of the scores, so always finite.
    """
    allowed = int(np.floor(false_acceptance * len(no_term_scores)))
    return float(np.sort(no_term_scores)[::-1][min(allowed, len(no_term_scores) - 1)])


def rejection(threshold: float, no_term_scores: np.ndarray, term_scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """What rejecting chunks whose best score is not above `threshold` does to no-term chunks and to term chunks.

    `term_scores` are the best scores of each group of term chunks. Figures of an empty group are null.
    """
    accepted = float((no_term_scores > threshold).mean()) if len(no_term_scores) else None
    groups = {}
    for name, scores in term_scores.items():
        groups[name] = {
            "n": len(scores),
            "false_rejection": float((scores <= threshold).mean()) if len(scores) else None,
            "auroc": auroc(scores, no_term_scores),
        }
    return {
        "n_no_term": len(no_term_scores),
        "false_acceptance": accepted,
        "rejected_no_term": None if accepted is None else 1 - accepted,
        "term_chunks": groups,
    }


def auroc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """The chance that a positive scores above a negative, ties counting half; None when a side is empty."""
    if not len(positive) or not len(negative):
        return None
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))
