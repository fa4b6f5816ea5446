"""Figures of a retrieval evaluation, against values worked out by hand or by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from earmark.evaluation.measures import auroc, recall_and_mrr, rejection, rejection_threshold
from earmark.retrieval.ranking import TermColumns, rank_of, term_scores

TERMS = TermColumns.of(["rome", "oslo", "rome", "lima"])  # the third surface is an alias of the first


def test_recall_and_mrr_by_hand():
    report = recall_and_mrr(np.array([1, 2, 5, 11]), np.array(["rome", "rome", "oslo", "oslo"]), 40, 100, 0)
    assert [report[f"recall@{k}"]["value"] for k in (1, 5, 10, 20)] == [0.25, 0.75, 0.75, 1.0]
    assert report["mrr"]["value"] == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 11) / 4)
    assert report["recall@10"]["chance"] == 0.25
    assert report["recall@1"]["low"] <= 0.25 <= report["recall@1"]["high"]


def test_chance_is_never_more_than_certainty():
    assert recall_and_mrr(np.array([1]), np.array(["x"]), 5, 10, 0)["recall@10"]["chance"] == 1.0


def test_an_empty_group_has_a_reason_and_no_figures():
    assert recall_and_mrr(np.array([]), np.array([]), 5, 10, 0) == {"n": 0, "reason": "no such chunk in this split"}


def test_intervals_resample_terms_each_with_all_its_chunks():
    ranks, terms = np.array([1] * 90 + [99] * 10), np.array(["found"] * 90 + ["missed"] * 10)
    report = recall_and_mrr(ranks, terms, 200, 400, 0)
    # Of two terms drawn with replacement, either both are the same or both are there: no chunk count narrows that.
    assert report["recall@1"] == {"value": 0.9, "low": 0.0, "high": 1.0, "chance": 0.005}


def test_intervals_are_those_of_drawing_whole_terms_one_by_one():
    random = np.random.default_rng(1)
    ranks, terms = random.integers(1, 30, 60), random.integers(0, 12, 60).astype(str)
    members = [np.flatnonzero(terms == term) for term in np.unique(terms)]
    drawn = [
        np.mean(ranks[np.concatenate([members[i] for i in random.integers(0, 12, 12)])] <= 10) for _ in range(4000)
    ]
    interval = recall_and_mrr(ranks, terms, 40, 4000, 0)["recall@10"]
    assert [interval["low"], interval["high"]] == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.02)


def test_a_main_term_scores_as_its_best_surface():
    assert term_scores(np.array([[0.1, 0.2, 0.7, 0.3]]), TERMS).tolist() == [[0.7, 0.2, 0.3]]


def test_another_spoken_term_is_neither_right_nor_wrong():
    scores = np.array([0.5, 0.9, 0.7])
    assert rank_of(scores, TERMS, "rome", []) == 3
    assert rank_of(scores, TERMS, "rome", ["oslo"]) == 2
    assert rank_of(scores, TERMS, "rome", ["atlantis"]) == 3


def test_a_tie_counts_against_the_term():
    assert rank_of(np.array([0.5, 0.5, 0.1]), TERMS, "rome", []) == 2


@pytest.mark.parametrize("wanted", [0.0, 0.05, 0.5])
def test_the_threshold_accepts_no_more_no_term_chunks_than_allowed(wanted):
    scores = np.random.default_rng(0).normal(size=119)
    threshold = rejection_threshold(scores, wanted)
    accepted = (scores > threshold).sum()
    assert accepted <= wanted * 119 < accepted + 1


def test_the_threshold_is_a_number_however_few_chunks_there_are():
    assert rejection_threshold(np.array([0.3]), 0.999) == 0.3


def test_auroc_is_that_of_scikit_learn_with_ties():
    random = np.random.default_rng(0)
    positive, negative = random.integers(2, 8, 50) / 10, random.integers(0, 6, 70) / 10
    labels = np.r_[np.ones(50), np.zeros(70)]
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))


def test_rejection_by_hand():
    report = rejection(0.5, np.array([0.1, 0.6]), {"all": np.array([0.4, 0.5, 0.9]), "unseen": np.array([])})
    assert (report["false_acceptance"], report["rejected_no_term"]) == (0.5, 0.5)
    assert report["term_chunks"]["all"]["false_rejection"] == pytest.approx(2 / 3)
    assert report["term_chunks"]["unseen"] == {"n": 0, "false_rejection": None, "auroc": None}


def test_rejection_without_no_term_chunks_makes_no_figures_up():
    report = rejection(0.5, np.array([]), {"all": np.array([0.4])})
    assert report["false_acceptance"] is None
    assert report["term_chunks"]["all"]["auroc"] is None
