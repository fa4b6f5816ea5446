"""Laying a term's units over a chunk's frames, held against every path there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from earmark.retrieval.term_alignment import FLOOR, UNIT_BONUS, alignment_scores, emissions, locate

BLANK, UNITS = 0, 3
NEVER = -5e3  # what cannot be aligned scores below it

# Halves are exact in float32, so sums need no tolerance and ties are ties.
frames_of_emissions = st.lists(
    st.lists(st.integers(-12, 0).map(lambda halves: halves / 2), min_size=UNITS + 1, max_size=UNITS + 1),
    min_size=1,
    max_size=6,
)
terms = st.lists(st.integers(1, UNITS), min_size=1, max_size=4)


def paths(emitted: np.ndarray, term: list[int]) -> dict[tuple[int, ...], float]:
    """The score of every choice of frames[units] in which the units begin, in order."""
    found = {}
    for begins in combinations(range(len(emitted)), len(term)):
        score = 0.0
        for frame in range(begins[0], begins[-1] + 1):
            unit = term[sum(begin <= frame for begin in begins) - 1]
            begun = frame in begins
            score += emitted[frame, unit] + UNIT_BONUS if begun else max(emitted[frame, unit], emitted[frame, BLANK])
        found[begins] = score
    return found


def score(emitted: torch.Tensor, *some: list[int]) -> torch.Tensor:
    """scores[B, N] of terms of any lengths."""
    longest = max(map(len, some))
    units = torch.tensor([[*term, *[0] * (longest - len(term))] for term in some])
    return alignment_scores(emitted, units, torch.tensor([len(term) for term in some]))


@given(frames_of_emissions, st.lists(terms, min_size=1, max_size=3))
def test_a_term_scores_as_its_best_path(rows, some):
    emitted = np.array(rows)
    for term, value in zip(some, score(torch.tensor([rows]), *some)[0].tolist(), strict=True):
        every = paths(emitted, term)
        assert value == max(every.values()) if every else value < NEVER


@given(frames_of_emissions, terms)
def test_a_term_is_located_on_its_best_path(rows, term):
    every = paths(np.array(rows), term)
    if not every:
        return
    first, last = locate(torch.tensor(rows), torch.tensor([[*term, 0]]), torch.tensor([len(term)]))
    best = max(every.values())
    assert (first.item(), last.item()) in {(begins[0], begins[-1]) for begins, value in every.items() if value == best}


@given(frames_of_emissions, frames_of_emissions, st.lists(terms, min_size=2, max_size=3), st.randoms())
def test_terms_of_each_chunks_own_score_as_shared_ones(one, other, some, random):
    chunks = torch.full((2, max(len(one), len(other)), UNITS + 1), -1e4)
    chunks[0, : len(one)], chunks[1, : len(other)] = torch.tensor(one), torch.tensor(other)
    shared = score(chunks, *some)
    orders = [random.sample(range(len(some)), len(some)) for _ in chunks]
    units = torch.tensor([[[*term, *[0] * (4 - len(term))] for term in (some[i] for i in order)] for order in orders])
    counts = torch.tensor([[len(some[i]) for i in order] for order in orders])
    own = alignment_scores(chunks, units, counts)
    assert torch.equal(own, shared.gather(1, torch.tensor(orders)))


@given(frames_of_emissions, terms, st.integers(1, 3), st.integers(1, UNITS))
def test_padding_of_frames_chunks_and_units_changes_nothing(rows, term, padding, garbage):
    if len(rows) < len(term):
        return
    log_probs = torch.tensor(rows).log_softmax(dim=-1)
    alone = score(emissions(log_probs[None], torch.tensor([len(rows)])), term)
    loud = torch.zeros(2, len(rows) + padding, UNITS + 1)  # certain of every unit, were it not padding
    loud[0, : len(rows)] = log_probs
    emitted = emissions(loud, torch.tensor([len(rows), len(rows) + padding]))
    units = torch.full((2, len(term) + padding), garbage)
    units[0, : len(term)] = torch.tensor(term)
    together = alignment_scores(emitted, units, torch.tensor([len(term), len(term) + padding]))
    assert together[0, 0].item() == pytest.approx(alone.item(), abs=1e-5)
    first, last = locate(emitted[0], units[:1], torch.tensor([len(term)]))
    assert 0 <= first.item() <= last.item() < len(rows)


def heard(*units: int, certainty: float = 0.9) -> torch.Tensor:
    """log_probs[1, T, U] of a chunk in which each frame's likeliest unit is the one given."""
    probs = torch.full((1, len(units), UNITS + 2), (1 - certainty) / (UNITS + 1))
    probs[0, range(len(units)), list(units)] = certainty
    return probs.log()


def test_what_was_spoken_scores_higher_than_what_was_not_and_the_longer_of_two_nested_wins():
    emitted = emissions(heard(4, 0, 1, 1, 2, 0, 2, 3, 4), torch.tensor([9]))
    spoken, inside, reversed_, other = score(emitted, [1, 2, 2, 3], [2, 2, 3], [3, 2, 2, 1], [1, 4, 2, 1])[0].tolist()
    assert spoken == pytest.approx(4 * UNIT_BONUS)
    assert inside == pytest.approx(3 * UNIT_BONUS)
    assert max(reversed_, other) < inside


def test_one_bad_frame_costs_a_term_no_more_than_the_floor_allows():
    mumbled = emissions(heard(1, 4, 3, certainty=1.0), torch.tensor([3]))
    assert score(mumbled, [1, 2, 3]).item() == pytest.approx(3 * UNIT_BONUS + np.log(FLOOR / (1 + FLOOR)), abs=1e-4)


def test_the_gradient_is_that_of_finite_differences_and_lies_on_the_best_path():
    torch.manual_seed(0)
    logits = torch.randn(1, 7, UNITS + 1, dtype=torch.float64, requires_grad=True)
    some = [[1, 2, 1], [3, 1]]

    def scores(values: torch.Tensor) -> torch.Tensor:
        return score(emissions(values.log_softmax(-1), torch.tensor([6])), *some)

    assert torch.autograd.gradcheck(scores, [logits])
    scores(logits)[0, 0].backward()
    emitted = emissions(logits.detach().log_softmax(-1), torch.tensor([6]))[0]
    every = paths(emitted[:6].numpy(), some[0])
    begins = max(every, key=lambda path: every[path])
    assert logits.grad is not None
    touched = logits.grad[0].abs().sum(dim=-1) > 1e-12
    assert touched[list(begins)].any()
    assert not touched[: begins[0]].any()
    assert not touched[begins[-1] + 1 :].any()
