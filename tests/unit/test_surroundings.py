"""Weighing a term against the rest of the chunk, held against every way to say the chunk."""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.retrieval import compiled_paths
from earmark.retrieval.alignment_index import AlignmentIndex
from earmark.retrieval.background import Background, background_words
from earmark.retrieval.surroundings import FRAGMENT_COST, UNIT_COST, Surroundings, surroundings
from earmark.retrieval.term_alignment import alignment_scores, emissions, locate
from earmark.retrieval.term_units import TermUnits, pad_units
from earmark.retrieval.unit_ngrams import UnitNgrams

UNITS = 3
WORDS = {(1, 2): 2.0, (2,): 6.0, (3, 1, 1): 4.5}

# Halves are exact in float32, so sums need no tolerance.
emissions_of_chunks = st.lists(
    st.lists(st.integers(-12, 0).map(lambda halves: halves / 2), min_size=UNITS + 1, max_size=UNITS + 1),
    min_size=1,
    max_size=4,
)


def said(frames: list[list[float]], units: tuple[int, ...]) -> float:
    """The best path of units that begins with the first frame and ends with the last, resting where that is better."""

    @cache
    def best(frame: int, unit: int) -> float:
        emitted = frames[frame]
        if frame == 0:
            return emitted[units[0]] if unit == 0 else -math.inf
        stay = best(frame - 1, unit) + max(emitted[units[unit]], emitted[0])
        return max(stay, best(frame - 1, unit - 1) + emitted[units[unit]]) if unit else stay

    return best(len(frames) - 1, len(units) - 1)


def piece(frames: list[list[float]]) -> float:
    """The best sequence of units, each for its cost, by trying all."""
    most = range(1, len(frames) + 1)
    return max(
        said(frames, units) - UNIT_COST * count
        for count in most
        for units in product(range(1, UNITS + 1), repeat=count)
    )


def explained(frames: list[list[float]], *, cut_start: bool, cut_end: bool) -> float:
    """The best explanation of all frames, between word borders but where the chunk's ends may cut a piece off."""

    @cache
    def until(end: int) -> float:
        if end == 0:
            return 0.0
        found = [until(end - 1) + frames[end - 1][0]]
        for begin in range(end):
            inside = frames[begin:end]
            found += [until(begin) + said(inside, word) - cost for word, cost in WORDS.items()]
            # At the chunk's start, silence may stand before the piece that is cut off.
            silent = sum(frame[0] for frame in frames[:begin])
            starts = [until(begin) - FRAGMENT_COST / 2, *([silent] if cut_start else [])]
            waived = cut_end and end == len(frames)
            found.append(max(starts) + piece(inside) - (0.0 if waived else FRAGMENT_COST / 2))
        return max(found)

    return until(len(frames))


def around(rows: list[list[float]], padding: int = 0):
    emitted = torch.full((1, len(rows) + padding, UNITS + 1), -1e4)
    emitted[0, : len(rows)] = torch.tensor(rows)
    spelled = pad_units(list(WORDS))
    costs = torch.tensor([list(WORDS.values())])
    lengths = torch.tensor([len(rows)])
    found = surroundings(emitted, lengths, spelled["units"][None], spelled["unit_counts"][None], costs)
    return emitted, found


@settings(deadline=None, max_examples=50)
@given(emissions_of_chunks, st.integers(0, 2))
def test_what_surrounds_a_term_is_the_best_of_all_explanations(rows, padding):
    _, found = around(rows, padding)
    assert found.whole.item() == explained(rows, cut_start=True, cut_end=True)
    for frame in range(len(rows) + 1):
        assert found.before[0, frame].item() == explained(rows[:frame], cut_start=True, cut_end=False)
        assert found.after[0, frame].item() == explained(rows[frame:], cut_start=False, cut_end=True)


@settings(deadline=None, max_examples=50)
@given(emissions_of_chunks, st.lists(st.integers(1, UNITS), min_size=1, max_size=3))
def test_a_term_scores_by_what_it_adds_and_is_located_where_it_adds_most(rows, term):
    if len(rows) < len(term):
        return
    emitted, found = around(rows, padding=1)
    places = {
        (begin, end): explained(rows[:begin], cut_start=True, cut_end=False)
        + said(rows[begin:end], tuple(term))
        + explained(rows[end:], cut_start=False, cut_end=True)
        for begin in range(len(rows))
        for end in range(begin + len(term), len(rows) + 1)
    }
    units, counts = torch.tensor([term]), torch.tensor([len(term)])
    score = alignment_scores(emitted, units, counts, found).item()
    assert score == max(places.values()) - explained(rows, cut_start=True, cut_end=True)
    first, last = locate(emitted[0], units, counts, found)
    best = {place for place, value in places.items() if value == max(places.values())}
    assert any(begin == first.item() and begin <= last.item() < end for begin, end in best)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_compiled_scores_are_those_of_pytorch_to_the_last_bit(chunks, frames, terms, longest, seed):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, frames + 1, (chunks,), generator=random)
    emitted = emissions((3 * torch.randn(chunks, frames, 6, generator=random)).log_softmax(-1), lengths)
    units = torch.randint(1, 6, (chunks, terms, longest), generator=random)
    counts = torch.randint(1, longest + 1, (chunks, terms), generator=random)
    costs = 10 * torch.rand(chunks, terms, generator=random)

    def everything() -> tuple[Surroundings, torch.Tensor, torch.Tensor]:
        around = surroundings(emitted, lengths, units, counts, costs)
        plain = alignment_scores(emitted, units[0], counts[0])
        return around, plain, alignment_scores(emitted, units, counts, around)

    compiled, *scores = everything()
    with pytest.MonkeyPatch.context() as gpu:
        gpu.setattr(compiled_paths, "can_be_compiled", lambda _: False)
        stepped, *others = everything()
    for chunk, length in enumerate(lengths.tolist()):
        assert torch.equal(compiled.before[chunk, : length + 1], stepped.before[chunk, : length + 1])
    assert torch.equal(compiled.after, stepped.after)
    assert torch.equal(compiled.whole, stepped.whole)
    for score, other in zip(scores, others, strict=True):
        aligned = other > -5e3  # what is longer than the chunk scores about minus 10,000, and is no match either way
        assert torch.equal(score[aligned], other[aligned]) and (score[~aligned] <= -5e3).all()


def test_a_frame_that_is_not_a_number_spoils_its_own_chunk_alone():
    emitted = emissions(torch.zeros(2, 4, UNITS + 1).log_softmax(-1), torch.tensor([4, 4]))
    emitted[1, 3, 2] = torch.nan
    spelled = pad_units(list(WORDS))
    units, counts = spelled["units"].expand(2, -1, -1), spelled["unit_counts"].expand(2, -1)
    around = surroundings(emitted, torch.tensor([4, 4]), units, counts, torch.ones(2, len(WORDS)))
    scores = alignment_scores(emitted, units, counts, around)
    assert scores[0].isfinite().all() and scores[1].isnan().all() and around.whole.isnan().tolist() == [False, True]


def hearing(said_units: list[int], units: int) -> dict[str, torch.Tensor]:
    """What an audio route that is sure of itself would make of these units, a blank after each."""
    log_probs = torch.full((1, 2 * len(said_units), units + 1), -12.0)
    log_probs[0, 1::2, 0] = 0.0
    log_probs[0, torch.arange(0, 2 * len(said_units), 2), torch.tensor(said_units)] = 0.0
    lengths = torch.tensor([2 * len(said_units)])
    return UnitNgrams(units).eval()({"unit_log_probs": log_probs.log_softmax(-1), "frame_lengths": lengths})


def test_a_term_inside_a_longer_word_is_told_from_the_term_itself():
    units = TermUnits.of("phonemes", [], {})
    spelled = {word: units.spellings(word)[0] for word in ("golden", "olden", "the", "days")}
    background = Background(
        ["the", "golden", "days"], [0.05, 5e-5, 1e-4], [spelled[w] for w in ("the", "golden", "days")]
    )
    ids = {
        text: [unit for word in text.split() for unit in spelled[word]]
        for text in ("the golden days", "the olden days")
    }
    plain = AlignmentIndex([spelled["olden"]], len(units.inventory))
    weighed = AlignmentIndex([spelled["olden"]], len(units.inventory), background)
    inside, itself = (hearing(ids[text], len(units.inventory)) for text in ("the golden days", "the olden days"))
    assert plain.search(inside, 1)[1] == plain.search(itself, 1)[1] == pytest.approx(12.5)
    assert weighed.search(inside, 1)[1] < 5 < 15 < weighed.search(itself, 1)[1]


def test_a_word_of_the_glossary_is_no_background_however_it_is_spelled():
    units = TermUnits.of("phonemes", [], {})
    background = background_words(units, "en", 5000)
    assert background is not None and {"right", "write", "golden", "the"} <= set(background.words)
    left = background.without(units.spellings("right"))
    assert not {"right", "write"} & set(left.words) and "golden" in left.words
    assert len(set(map(tuple, left.spellings))) == len(left.spellings)


def test_a_language_that_nobody_counted_has_no_background(caplog):
    units = TermUnits.of("letters", ["abc"], {})
    assert background_words(units, "th", 100) is None
    assert "no word frequencies for the language 'th'" in caplog.text


def test_words_with_other_letters_than_the_models_are_no_background():
    found = background_words(TermUnits.of("letters", ["die das der"], {}), "de", 4)
    assert found is not None and len(found.words) == 4
    assert set("".join(found.words)) <= set("diaser")
