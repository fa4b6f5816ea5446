"""Figures of a retrieval evaluation, against values worked out by hand or by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from earmark.evaluation.measures import (
    LETTER_BINS,
    TRAINING_CHUNK_BINS,
    auroc,
    calibration,
    letter_count,
    recall_and_mrr,
    recall_by_bin,
    recall_of_every_term,
    rejection,
    rejection_threshold,
)
from earmark.retrieval.ranking import TermColumns, rank_of, term_scores

TERMS = TermColumns.of(["rome", "oslo", "rome", "lima"])  # the third surface is an alias of the first


def test_recall_of_every_term_counts_terms_and_chunks():
    ranks = [(1,), (2, 30), (1, 2, 3)]  # of three chunks with one, two and three terms
    report = recall_of_every_term(ranks, np.array(["rome", "oslo", "oslo"]), 100, 0)
    assert (report["chunks"], report["terms"]) == (3, 6)
    assert report["micro"]["recall@1"]["value"] == pytest.approx(2 / 6)
    assert report["per_sample"]["recall@1"]["value"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert report["micro"]["recall@10"]["value"] == pytest.approx(5 / 6)
    assert report["per_sample"]["recall@10"]["value"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    for kind, of_oslo in (("micro", 4 / 5), ("per_sample", 3 / 4)):
        figure = report[kind]["recall@10"]
        assert (figure["low"], figure["high"]) == (pytest.approx(of_oslo), 1.0)  # oslo drawn alone, rome drawn alone
    assert recall_of_every_term([], np.array([]), 100, 0)["chunks"] == 0


def test_one_term_a_chunk_makes_both_kinds_the_same_as_recall():
    ranks, terms = [1, 2, 5, 11], np.array(["rome", "rome", "oslo", "oslo"])
    every = recall_of_every_term([(rank,) for rank in ranks], terms, 100, 0)
    alone = recall_and_mrr(np.array(ranks), terms, 40, 100, 0)
    for k in (1, 5, 10, 20):
        figure = alone[f"recall@{k}"]
        assert every["micro"][f"recall@{k}"] == every["per_sample"][f"recall@{k}"]
        assert every["micro"][f"recall@{k}"] == {name: figure[name] for name in ("value", "low", "high")}


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
    scores = {"all": np.array([0.4, 0.5, 0.9]), "unseen": np.array([])}
    report = rejection(0.5, np.array([0.1, 0.6]), scores, asked_false_acceptance=0.5)
    assert (report["false_acceptance"], report["rejected_no_term"]) == (0.5, 0.5)
    assert report["term_chunks"]["all"]["false_rejection"] == pytest.approx(2 / 3)
    assert report["term_chunks"]["all"]["false_rejection_at_asked"] == 0  # above 0.1 lies half of these no-term chunks
    unseen = report["term_chunks"]["unseen"]
    assert unseen == {"n": 0, "false_rejection": None, "false_rejection_at_asked": None, "auroc": None}


def test_rejection_without_no_term_chunks_makes_no_figures_up():
    report = rejection(0.5, np.array([]), {"all": np.array([0.4])}, 0.05)
    assert report["false_acceptance"] is None
    assert report["term_chunks"]["all"]["false_rejection_at_asked"] is None
    assert report["term_chunks"]["all"]["auroc"] is None


def test_ndcg_at_10_by_hand():
    report = recall_and_mrr(np.array([1, 3, 10, 11]), np.array(["rome", "oslo", "lima", "lima"]), 40, 100, 0)
    assert report["ndcg@10"]["value"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(11) + 0) / 4)
    assert report["ndcg@10"]["low"] <= report["ndcg@10"]["value"] <= report["ndcg@10"]["high"]


def test_each_chunk_counts_in_the_bin_that_holds_its_value():
    ranks = np.array([1, 20, 1, 1, 20, 1])
    terms = np.array(["a", "b", "c", "d", "e", "f"])
    report = recall_by_bin(ranks, terms, np.array([0, 1, 4, 5, 19, 20]), TRAINING_CHUNK_BINS, 40, 10, 0)
    assert {name: group["n"] for name, group in report.items()} == {"0": 1, "1-4": 2, "5-19": 2, "20+": 1}
    assert [group["recall@10"]["value"] for group in report.values()] == [1, 0.5, 0.5, 1]


def test_an_empty_bin_has_a_reason_and_a_value_below_all_bins_is_an_error():
    lengths = np.array([letter_count("new york"), letter_count("covid-19")])
    report = recall_by_bin(np.array([1, 2]), np.array(["new york", "covid-19"]), lengths, LETTER_BINS, 5, 10, 0)
    assert {name: group["n"] for name, group in report.items()} == {"1-6": 0, "7-9": 2, "10-13": 0, "14+": 0}
    assert "reason" in report["14+"]
    with pytest.raises(ValueError, match="lies below the lowest bin"):
        recall_by_bin(np.array([1]), np.array(["..."]), np.array([letter_count("...")]), LETTER_BINS, 5, 10, 0)


def drawn_scores(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels that are true with the chance 1 / (1 + exp(-(20 * score - 6)))."""
    random = np.random.default_rng(seed)
    scores = random.uniform(0, 0.6, count)
    return scores, random.random(count) < 1 / (1 + np.exp(-(20 * scores - 6)))


def test_scores_of_one_law_are_calibrated_and_those_of_the_opposite_law_are_not():
    dev, (scores, has_term) = drawn_scores(4000, 0), drawn_scores(4000, 1)
    report = calibration(*dev, scores, has_term)
    assert (report["slope"], report["intercept"]) == (pytest.approx(20, rel=0.1), pytest.approx(-6, rel=0.1))
    assert report["ece"] < 0.03
    assert calibration(*dev, scores, ~has_term)["ece"] > 0.6


def test_the_calibration_error_is_that_of_its_bins_by_hand():
    dev, (scores, has_term) = drawn_scores(300, 0), drawn_scores(50, 1)
    report = calibration(*dev, scores, has_term)
    chance = 1 / (1 + np.exp(-(report["slope"] * scores + report["intercept"])))
    error = 0.0
    for low in np.arange(10) / 10:
        inside = (chance >= low) & (chance < low + 0.1)
        if inside.any():
            error += inside.mean() * abs(chance[inside].mean() - has_term[inside].mean())
    assert report["ece"] == pytest.approx(error)
    assert sum(row["n"] for row in report["bins"]) == report["n"] == 50


def test_the_fit_meets_platts_targets():
    scores, has_term = drawn_scores(60, 2)
    report = calibration(scores, has_term, scores, has_term)
    chance = 1 / (1 + np.exp(-(report["slope"] * scores + report["intercept"])))
    positives, negatives = has_term.sum(), (~has_term).sum()
    target = np.where(has_term, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # Where the likelihood is greatest, chances and targets have the same sum, weighted by score or not.
    assert [chance.sum(), chance @ scores] == pytest.approx([target.sum(), target @ scores], rel=1e-3)


def test_scores_that_separate_dev_entirely_still_give_a_finite_map():
    scores, has_term = np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])
    report = calibration(scores, has_term, np.array([0.5, 5.0]), np.array([True, True]))
    assert 0 < report["slope"] < 100
    assert report["bins"][-1]["high"] == 1.0


def test_calibration_without_both_classes_on_dev_or_without_chunks_has_a_reason():
    scores, terms, both = np.array([0.1, 0.2]), np.array([True, True]), np.array([True, False])
    assert "reason" in calibration(scores, terms, scores, both)
    assert calibration(scores, both, np.array([]), np.array([], bool))["n"] == 0
