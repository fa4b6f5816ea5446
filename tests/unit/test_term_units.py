"""Surfaces as the units they are spoken in."""

from __future__ import annotations

import pytest
import torch

from earmark.errors import ConfigError, InputError
from earmark.pronunciations import PHONEMES
from earmark.retrieval.term_units import MOST_LETTERS, MOST_SPELLINGS, MOST_UNITS, PADDING, TermUnits, pad_units


def said(units: TermUnits, surface: str) -> list[str]:
    """The spellings of a surface, written out."""
    return [" ".join(units.inventory[unit - 1] for unit in spelling) for spelling in units.spellings(surface)]


@pytest.fixture(scope="module")
def english() -> TermUnits:
    return TermUnits.of("phonemes", [], {"oslo": [["UH", "S", "L", "UW"]], "hibari": [["HH", "IY", "B"]]})


def test_english_is_spelled_in_the_phonemes_of_the_dictionary(english):
    assert english.inventory == list(PHONEMES)
    assert said(english, "Rome") == ["R OW M"]


def test_the_lexicon_comes_before_the_dictionary(english):
    assert said(english, "oslo") == ["UH S L UW", "AA Z L OW"]
    assert said(english, "hibari") == ["HH IY B"]


def test_a_lexicon_that_repeats_the_dictionary_gives_no_spelling_twice():
    assert said(TermUnits.of("phonemes", [], {"rome": [["R", "OW", "M"]]}), "rome") == ["R OW M"]


def test_a_word_in_no_dictionary_is_guessed_from_its_letters(english):
    (guess,) = said(english, "zorblax")
    assert guess.startswith("Z")
    assert guess.endswith("K S")


def test_pronunciations_of_words_multiply_up_to_the_limit(english):
    assert said(english, "new york") == ["N UW Y AO R K", "N Y UW Y AO R K"]
    route = said(english, "read the data route")  # 2 x 3 x 2 x 2
    assert len(set(route)) == len(route) == MOST_SPELLINGS
    assert route[0] == "R EH D DH AH D EY T AH R UW T"


def test_a_surface_with_one_unpronounceable_word_has_no_spelling(english):
    assert english.spellings("rome 2024") == []
    assert english.spellings("--") == []
    with pytest.raises(InputError, match=r"'rome 2024' cannot be spelled in known phonemes; add .*lexicon"):
        english.preprocess(["rome", "rome 2024"])


def test_a_surface_of_too_many_units_has_no_spelling():
    units = TermUnits.of("letters", ["a"], {})
    assert units.spellings("a" * MOST_UNITS) == [[1] * MOST_UNITS]
    assert units.spellings("a" * (MOST_UNITS + 1)) == []


def test_letters_are_those_of_the_texts_without_marks():
    units = TermUnits.of("letters", ["Rock 'n' roll", "zo\u00eb's 3"], {"rock": [["R"]]})
    assert units.inventory == sorted("rocknlz\u00ebs3")
    assert said(units, "ZOE\u0308'S rock") == ["z o \u00eb s r o c k"]
    assert units.spellings("rome") == []  # no m, no e
    with pytest.raises(InputError, match="'rome' cannot be spelled in known letters"):
        units.preprocess(["rome"])


def test_a_script_of_too_many_letters_is_a_config_error():
    most = [chr(0x4E00 + number) for number in range(MOST_LETTERS)]
    assert TermUnits.of("letters", most, {}).spellings(most[-1]) == [[MOST_LETTERS]]
    with pytest.raises(ConfigError, match=r"1\.5% of the texts .* 64 most frequent; .*interaction: pooled"):
        TermUnits.of("letters", [*most, "a"], {})


def test_a_stray_letter_from_elsewhere_cannot_be_spelled_and_stops_nothing():
    most = [chr(0x4E00 + number) for number in range(MOST_LETTERS)] * 3
    units = TermUnits.of("letters", [*most, "a"], {})
    assert (len(units.inventory), units.spellings("a")) == (MOST_LETTERS, [])


def test_units_are_padded_to_the_longest():
    padded = pad_units([[3], [1, 2]])
    assert padded["units"].tolist() == [[3, PADDING], [1, 2]]
    assert padded["unit_counts"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["phonemes", "letters"])
def test_units_are_the_same_after_saving_and_loading(kind, tmp_path):
    units = TermUnits.of(kind, ["oslo in rome"], {"oslo": [["UH", "S", "L", "UW"]]})
    units.save(str(tmp_path))
    loaded = TermUnits.load(str(tmp_path))
    assert (loaded.units, loaded.inventory, loaded.lexicon) == (units.units, units.inventory, units.lexicon)
    assert loaded.spellings("rome oslo") == units.spellings("rome oslo") != []
    vectors = [some.forward(some.preprocess(["rome", "oslo"]))["sentence_embedding"] for some in (units, loaded)]
    assert torch.equal(*vectors)
    assert vectors[0].shape == (2, units.get_embedding_dimension())


def test_the_likeliest_spelling_comes_first_then_one_word_otherwise():
    units = TermUnits("phonemes", PHONEMES, {"qa": [["K"], ["G"]], "qb": [["T"], ["D"], ["B"]], "qc": [["S"], ["Z"]]})
    spelled = [[PHONEMES[unit - 1] for unit in spelling] for spelling in units.spellings("qa qb qc")]
    assert spelled == [["K", "T", "S"], ["G", "T", "S"], ["K", "D", "S"], ["K", "B", "S"]]


def test_a_transcript_may_be_longer_than_any_term():
    units = TermUnits("phonemes", PHONEMES, {})
    assert len(units.transcript("photosynthesis " * 40)) > 400
    assert units.transcript("hello 2024") == []
