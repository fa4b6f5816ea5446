"""Vectors of n-grams, whose inner product names the terms worth aligning."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from earmark.retrieval.ngram_search import NgramSearch
from earmark.retrieval.term_alignment import emissions
from earmark.retrieval.term_units import pad_units
from earmark.retrieval.unit_ngrams import UnitNgrams, ngram_vectors, sparse_ngram_vectors

UNITS = 3
SPAN, ABSENT, UNIT_WEIGHT = 4.0, 0.25, 0.5  # nats; cost of an n-gram that is not heard; of a unit beside a pair

logits = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(UNITS + 1)), elements=st.floats(-6, 6, width=32))
terms = st.lists(st.integers(1, UNITS), min_size=1, max_size=6)


def best_moment(emitted: np.ndarray, ngram: tuple[int, ...]) -> float:
    """The best score of an n-gram of one or two units in emitted[T, U + 1], of all the frames it could begin in."""
    if len(ngram) == 1:
        return emitted[:, ngram[0]].max()
    first, second = ngram
    resting = np.maximum(emitted[:, first], emitted[:, 0])
    moments = combinations(range(len(emitted)), 2)
    return max((emitted[i, first] + resting[i + 1 : j].sum() + emitted[j, second] for i, j in moments), default=-np.inf)


def chunk_vectors(log_probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return UnitNgrams(UNITS).eval()({"unit_log_probs": log_probs, "frame_lengths": lengths})["sentence_embedding"]


@given(logits, terms)
def test_the_product_of_chunk_and_term_sums_the_best_moments_of_the_terms_ngrams(values, term):
    log_probs = torch.from_numpy(values)[None].log_softmax(-1)
    lengths = torch.tensor([len(values)])
    emitted = emissions(log_probs, lengths)[0].double().numpy()
    expected = 0.0
    for ngram in {*((unit,) for unit in term), *pairwise(term)}:
        weight = UNIT_WEIGHT if len(ngram) == 1 else 1.0
        expected += weight * max(0.0, 1 + best_moment(emitted, ngram) / SPAN) - ABSENT
    product = chunk_vectors(log_probs, lengths) @ ngram_vectors(torch.tensor([term]), UNITS).T
    assert product.item() == pytest.approx(expected, abs=1e-4)


@given(st.lists(terms, min_size=1, max_size=4))
def test_a_terms_vector_marks_each_of_its_ngrams_once_whatever_pads_it(some):
    vectors = ngram_vectors(pad_units(some)["units"], UNITS)
    assert vectors.shape == (len(some), UNITS**2 + UNITS)
    assert set(vectors.unique().tolist()) <= {0.0, 1.0}
    for vector, term in zip(vectors, some, strict=True):
        assert vector.sum() == len(set(term)) + len(set(pairwise(term)))


def test_terms_of_other_pairs_have_other_vectors():
    vectors = ngram_vectors(torch.tensor([[1, 2], [2, 1], [1, 1], [2, 2], [1, 0]]), UNITS)
    assert len(vectors.unique(dim=0)) == 5


@given(logits, logits)
def test_batch_mates_and_what_lies_beyond_a_chunks_end_change_nothing(one, other):
    batch = torch.zeros(2, max(len(one), len(other)) + 1, UNITS + 1)  # zero: certain of every unit
    lengths = torch.tensor([len(one), len(other)])
    for row, values in enumerate((one, other)):
        batch[row, : len(values)] = torch.from_numpy(values).log_softmax(-1)
    together = chunk_vectors(batch, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = chunk_vectors(batch[row : row + 1, :length], lengths[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-5)


@given(logits, logits)
def test_compiled_chunk_vectors_are_those_of_pytorch_to_the_last_bit(one, other):
    batch = torch.zeros(2, max(len(one), len(other)), UNITS + 1)
    for row, values in enumerate((one, other)):
        batch[row, : len(values)] = torch.from_numpy(values).log_softmax(-1)
    lengths = torch.tensor([len(one), len(other)])
    with_gradients = chunk_vectors(batch.clone().requires_grad_(), lengths)
    assert with_gradients.requires_grad
    assert torch.equal(chunk_vectors(batch, lengths), with_gradients)


@settings(max_examples=40)
@given(st.lists(terms, min_size=3, max_size=200), st.integers(0, 2**31), st.data())
def test_the_rows_of_the_largest_sums_are_found_and_beside_them_those_of_the_largest_means(spellings, seed, data):
    vectors = sparse_ngram_vectors(pad_units(spellings)["units"].numpy(), UNITS)
    vector = np.random.default_rng(seed).normal(size=vectors.shape[1]).astype(np.float32)
    by_sum = data.draw(st.integers(1, len(spellings) - 2))
    by_mean = data.draw(st.integers(0, len(spellings) - 1 - by_sum))
    found = NgramSearch.of(vectors, UNITS).best(vector, by_sum, by_mean)
    assert len(set(found.tolist())) == len(found) == by_sum + by_mean
    sums = vectors.toarray().astype(float) @ vector
    means = sums / vectors.toarray().sum(axis=1)
    first, others = found[:by_sum], found[by_sum:]
    left = np.setdiff1d(np.arange(len(spellings)), found)
    assert sums[first].min() >= np.delete(sums, first).max() - 1e-4
    assert by_mean == 0 or means[others].min() >= means[left].max() - 1e-4


def test_of_rows_that_fit_alike_the_first_are_found():
    spellings = [[1, 2], [3], [2, 1]] * 100
    vector = np.zeros(UNITS**2 + UNITS, np.float32)
    vector[UNITS**2 :] = [1.0, 1.0, -1.0]
    found = NgramSearch.of(sparse_ngram_vectors(pad_units(spellings)["units"].numpy(), UNITS), UNITS).best(
        vector, 50, 5
    )
    assert sorted(found.tolist()) == [row for row in range(300) if row % 3 != 1][:55]


def test_a_chunk_of_no_numbers_has_as_many_candidates_as_any():
    rows = NgramSearch.of(sparse_ngram_vectors(np.ones((20, 2), int), UNITS), UNITS).best(
        np.full(UNITS**2 + UNITS, np.nan, np.float32), 3, 2
    )
    assert len(set(rows.tolist())) == 5


@given(st.lists(terms, min_size=1, max_size=8))
def test_vectors_made_without_their_zeros_are_the_same(spellings):
    units = pad_units(spellings)["units"]
    assert np.array_equal(sparse_ngram_vectors(units.numpy(), UNITS).toarray(), ngram_vectors(units, UNITS).numpy())
