"""The figures of a retrieval evaluation, each from plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

RECALL_AT = (1, 5, 10, 20)
NDCG_AT = 10
# Lower ends of the groups that recall is split into. No chunk is zero-shot, fewer than five few-shot.
TRAINING_CHUNK_BINS = (0, 1, 5, 20)
LETTER_BINS = (1, 7, 10, 14)
_INTERVAL = (2.5, 97.5)  # percentiles: 95 %


def recall_and_mrr(ranks: np.ndarray, main_terms: np.ndarray, terms: int, resamples: int, seed: int) -> dict[str, Any]:
    """Recall@K, MRR and nDCG@10 of ranks[n] (from 1) among `terms` main terms, with 95 % bootstrap intervals.

    `main_terms`[n] are the terms that were spoken. {n, recall@K: {value, low, high, chance}, mrr: {value, low, high},
    ndcg@10: the same}; with n = 0 the figures are left out, with a reason. A chunk has one right term, so the ideal
    gain is 1 and its nDCG@10 is 1 / log2(1 + rank) within the first ten, 0 beyond. Terms are resampled, each with all
    its chunks: one term's chunks tend to be found or missed together. So the intervals say what other terms would give,
    for these speakers; of a single term they say nothing.
    """
    if not len(ranks):
        return {"n": 0, "reason": "no such chunk in this split"}
    distinct, term = np.unique(main_terms, return_inverse=True)
    weights = _resample(len(distinct), resamples, seed)
    report: dict[str, Any] = {"n": len(ranks)}
    for k in RECALL_AT:
        report[f"recall@{k}"] = {**_interval((ranks <= k).astype(float), term, weights), "chance": min(1.0, k / terms)}
    report["mrr"] = _interval(1 / ranks, term, weights)
    gains = np.where(ranks <= NDCG_AT, 1 / np.log2(1 + ranks), 0.0)
    report[f"ndcg@{NDCG_AT}"] = _interval(gains, term, weights)
    return report


def recall_of_every_term(
    ranks: Sequence[Sequence[int]], main_terms: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """Recall@K where a chunk holds several terms: ranks[i] are those of all terms spoken in chunk i, from 1.

    `micro` is the share of all spoken terms that are among the first K, `per_sample` the mean over chunks of the share
    of a chunk's own. Of a chunk with more than K terms not all can be. {chunks, terms, micro: {recall@K: {value, low,
    high}}, per_sample: the same}; intervals as in `recall_and_mrr`, by the chunks' `main_terms`[n].
    """
    if not len(ranks):
        return {"chunks": 0, "reason": "no such chunk in this split"}
    distinct, term = np.unique(main_terms, return_inverse=True)
    weights = _resample(len(distinct), resamples, seed)
    spoken = np.array([len(of_chunk) for of_chunk in ranks])
    report: dict[str, Any] = {"chunks": len(ranks), "terms": int(spoken.sum()), "micro": {}, "per_sample": {}}
    for k in RECALL_AT:
        found = np.array([sum(rank <= k for rank in of_chunk) for of_chunk in ranks], float)
        report["micro"][f"recall@{k}"] = _interval(found, term, weights, spoken)
        report["per_sample"][f"recall@{k}"] = _interval(found / spoken, term, weights)
    return report


def recall_by_bin(
    ranks: np.ndarray,
    main_terms: np.ndarray,
    values: np.ndarray,
    lower_ends: Sequence[int],
    terms: int,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """`recall_and_mrr` of the chunks in each bin of values[n], a whole number per chunk: {"1-4": {...}, "20+": {...}}.

    Bin i holds values from `lower_ends[i]` up to the next lower end, the last one all above. `values` are the number of
    training chunks of each chunk's main term (TRAINING_CHUNK_BINS) or its length (`letter_count`, LETTER_BINS). No bin
    is left out; ValueError if a value lies below all of them.
    """
    bins = np.searchsorted(lower_ends, values, side="right") - 1
    if (bins < 0).any():
        raise ValueError(f"a value of {values.min()} lies below the lowest bin, which begins at {lower_ends[0]}")
    report = {}
    for number, name in enumerate(_bin_names(lower_ends)):
        inside = bins == number
        report[name] = recall_and_mrr(ranks[inside], main_terms[inside], terms, resamples, seed)
    return report


def _bin_names(lower_ends: Sequence[int]) -> list[str]:
    names = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(lower_ends)]
    return [*names, f"{lower_ends[-1]}+"]


def letter_count(term: str) -> int:
    """Letters and digits of a term: how much there is to hear of it.

    Words would not do: a Chinese term has as many as it has characters, a German compound has one.
    """
    return sum(character.isalnum() for character in term)


def _resample(terms: int, resamples: int, seed: int) -> np.ndarray:
    """weights[resamples, terms]: how often each term is drawn when as many as there are are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(terms, np.full(terms, 1 / terms), size=resamples)


def _interval(
    values: np.ndarray, term: np.ndarray, weights: np.ndarray, counts: np.ndarray | None = None
) -> dict[str, float]:
    """The sum of values[n] by that of counts[n] (None: ones), and its interval when the terms, of which chunk i says
    term[i], are weighted."""
    counts = np.ones(len(values)) if counts is None else counts
    sums, totals = np.bincount(term, values), np.bincount(term, counts)
    low, high = np.percentile((weights @ sums) / (weights @ totals), _INTERVAL)
    return {"value": float(values.sum() / counts.sum()), "low": float(low), "high": float(high)}


def rejection_threshold(no_term_scores: np.ndarray, false_acceptance: float) -> float:
    """The lowest of the no-term chunks' scores[n] above which at most `false_acceptance` (below 1) of them lie.

    It is one of the scores, so always finite.
    """
    allowed = int(np.floor(false_acceptance * len(no_term_scores)))
    return float(np.sort(no_term_scores)[::-1][min(allowed, len(no_term_scores) - 1)])


def rejection(
    threshold: float, no_term_scores: np.ndarray, term_scores: dict[str, np.ndarray], asked_false_acceptance: float
) -> dict[str, Any]:
    """What rejecting chunks whose best score is not above `threshold` does to no-term chunks and to term chunks.

    `term_scores` are the best scores of each group of term chunks. `false_rejection_at_asked` is what a threshold that
    is set on these no-term chunks themselves would give: ways to score compare by it, however well their thresholds
    carry over from dev. Figures of an empty group are null.
    """
    accepted = float((no_term_scores > threshold).mean()) if len(no_term_scores) else None
    own = rejection_threshold(no_term_scores, asked_false_acceptance) if len(no_term_scores) else None
    groups = {}
    for name, scores in term_scores.items():
        groups[name] = {
            "n": len(scores),
            "false_rejection": float((scores <= threshold).mean()) if len(scores) else None,
            "false_rejection_at_asked": None if own is None or not len(scores) else float((scores <= own).mean()),
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


def calibration(
    set_scores: np.ndarray, set_has_term: np.ndarray, scores: np.ndarray, has_term: np.ndarray, bins: int = 10
) -> dict[str, Any]:
    """How far the best score can be read as the chance that the chunk holds a term: expected calibration error.

    A logistic map from best score to P(term chunk) is fitted on the chunks that thresholds are set on (set_scores[n],
    bool[n]) and applied to others.
    `ece` is the mean over the others of |mean P - share of term chunks| of their bin, among `bins` of equal
    width in P (Guo et al. 2017, for two classes): {n, ece, slope, intercept, bins: [{low, high, n, mean_probability,
    term_share}]}, empty bins left out; a `reason` and no figure where those lack a class, or there are no others. P
    rests on their share of term chunks: another share elsewhere is part of the error.
    """
    if set_has_term.all() or not set_has_term.any():
        return {"n": len(scores), "reason": "there is no term chunk, or no no-term chunk, to calibrate on"}
    if not len(scores):
        return {"n": 0, "reason": "no such chunk in this split"}
    slope, intercept = _platt(set_scores, set_has_term)
    probabilities = 1 / (1 + np.exp(-(slope * scores + intercept)))
    number = np.minimum((probabilities * bins).astype(int), bins - 1)
    rows = []
    for index in np.unique(number):
        inside = number == index
        rows.append(
            {
                "low": float(index / bins),
                "high": float((index + 1) / bins),
                "n": int(inside.sum()),
                "mean_probability": float(probabilities[inside].mean()),
                "term_share": float(has_term[inside].mean()),
            }
        )
    error = sum(row["n"] * abs(row["mean_probability"] - row["term_share"]) for row in rows) / len(scores)
    return {"n": len(scores), "ece": float(error), "slope": slope, "intercept": intercept, "bins": rows}


def _platt(scores: np.ndarray, has_term: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the logistic map, unpenalised, fitted to Platt's (1999) softened labels.

    A positive counts as (N + 1) / (N + 2) of one, a negative as 1 / (N + 2): scores that separate the classes would
    else have an infinite slope. As weights, each chunk stands on both sides.
    """
    positives, negatives = int(has_term.sum()), int((~has_term).sum())
    share = np.where(has_term, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, scale = scores.mean(), scores.std() or 1.0  # the solver wants figures about 1
    standard = ((scores - centre) / scale)[:, None]
    fit = LogisticRegression(C=np.inf).fit(
        np.concatenate([standard, standard]), np.repeat([1, 0], len(scores)), np.concatenate([share, 1 - share])
    )
    slope = float(fit.coef_[0, 0] / scale)
    return slope, float(fit.intercept_[0] - slope * centre)
