import sys
from itertools import pairwise

import numpy as np
import pytest

from earmark.alignment.intervals import WordInterval
from earmark.alignment.quality import (
    BLANK,
    FLOOR,
    PIECE_S,
    SYMBOLS,
    NoScorerError,
    PhonemeScorer,
    best_path,
    pieces,
    score_words,
)
from earmark.audio import SAMPLE_RATE
from earmark.pronunciations import PHONEMES

SURE, UNLIKELY = -0.1, -6.0


def heard(*phonemes):
    """log_probs[frame, SYMBOLS] of a recogniser that is sure of one column a frame."""
    log_probs = np.full((len(phonemes), BLANK + 1), UNLIKELY)
    log_probs[np.arange(len(phonemes)), phonemes] = SURE
    return log_probs


def test_the_best_path_passes_every_phoneme_and_keeps_equal_ones_apart():
    assert best_path(heard(BLANK, 3, 3, 5, BLANK), [3, 5]).tolist() == [0, 1, 1, 3, 4]
    assert best_path(heard(3, BLANK, 3), [3, 3]).tolist() == [1, 2, 3]
    assert best_path(heard(3, 3), [3, 3]) is None


def test_what_was_spoken_costs_next_to_nothing():
    score = score_words(heard(BLANK, 3, 5, BLANK, 7, 7), [[3, 5], [7]])
    assert score.quality == pytest.approx(6 * SURE / 3)
    assert score.words == [pytest.approx(3 * SURE / 2), pytest.approx(3 * SURE)]


def test_a_wrong_word_costs_where_it_stands():
    score = score_words(heard(3, 5, BLANK, BLANK, 7, 7, BLANK, BLANK, 9), [[3, 5], [8], [9]])
    assert min(score.words) == score.words[1]
    assert score.words[1] < UNLIKELY
    assert score.words[0] > -1
    assert score.words[2] > -1


def test_speech_between_two_words_that_no_word_explains_costs_both():
    score = score_words(heard(3, BLANK, 10, 11, 12, 13, BLANK, 5), [[3], [5]])
    assert score.words == [pytest.approx(2 * SURE + 2 * UNLIKELY), pytest.approx(2 * SURE + 2 * UNLIKELY)]


def test_the_words_add_up_to_the_segment():
    log_probs = np.log(np.random.default_rng(1).dirichlet(np.ones(BLANK + 1), 60))
    words = [[1, 2, 3], [3], [4, 4], [5, 6, 7, 8]]
    score = score_words(log_probs, words)
    total = sum(value * len(word) for value, word in zip(score.words, words, strict=True))
    assert score.quality * 10 == pytest.approx(total)


def test_more_phonemes_than_frames_score_the_floor():
    score = score_words(heard(3, 5), [[3, 5], [7, 8]])
    assert (score.quality, score.words) == (FLOOR, [FLOOR, FLOOR])


def words_at(*times):
    return [WordInterval("w", start_s, end_s) for start_s, end_s in times]


def test_a_short_segment_is_one_piece():
    assert pieces(4 * SAMPLE_RATE, words_at((0.0, 2.0), (2.0, 4.0))) == [(0, 4 * SAMPLE_RATE)]


def test_pieces_are_cut_between_words_and_cover_the_segment():
    words = words_at(*[(start + 0.1, start + 0.9) for start in range(30)])
    found = pieces(30 * SAMPLE_RATE, words)
    assert found[0][0] == 0
    assert found[-1][1] == 30 * SAMPLE_RATE
    assert all(left[1] == right[0] for left, right in pairwise(found))
    assert all(end % SAMPLE_RATE == 0 for _, end in found)
    assert all(end - start <= (PIECE_S + 1) * SAMPLE_RATE for start, end in found)


@pytest.mark.parametrize("words", [words_at((0.0, 60.0)), words_at((0.0, 1.0), (59.0, 60.0)), []])
def test_no_piece_grows_long_where_words_are_rare(words):
    found = pieces(60 * SAMPLE_RATE, words)
    assert max(end - start for start, end in found) <= 2 * PIECE_S * SAMPLE_RATE
    assert all(start < end for start, end in found)


def test_every_phoneme_of_the_aligner_can_be_scored():
    assert set(SYMBOLS) == {*PHONEMES, ""}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hama", None)
    with pytest.raises(NoScorerError, match="the package hama is not installed"):
        PhonemeScorer()
