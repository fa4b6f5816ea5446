"""Distractors: words that nobody says, out of the real dictionary or a list of the user's."""

from __future__ import annotations

import re
from pathlib import Path

import pocketsphinx
import pytest

from earmark.errors import InputError
from earmark.evaluation.distractors import distractor_words

SPOKEN = {"the", "knows", "hypertension", "zentrix"}
SURFACES = ("maine", "saint petersburg")


def every_distractor() -> set[str]:
    return set(distractor_words(10**6, SPOKEN, SURFACES, 0))


def test_a_smaller_set_begins_a_larger_one_and_the_seed_chooses():
    small, large = distractor_words(100, SPOKEN, SURFACES, 3), distractor_words(1000, SPOKEN, SURFACES, 3)
    assert large[:100] == small
    assert len(set(large)) == 1000
    assert not set(distractor_words(100, SPOKEN, SURFACES, 4)) & set(small)


def test_the_dictionary_holds_a_hundred_thousand_distractors():
    assert len(distractor_words(100_000, SPOKEN, SURFACES, 0)) == 100_000


def test_words_of_transcripts_and_surfaces_and_their_homophones_are_left_out():
    left = every_distractor()
    assert not left & {"knows", "hypertension", "maine", "saint", "petersburg"}
    assert not left & {"nose", "noes", "mane", "main"}  # sound like knows, and like Maine
    assert {"knowing", "mainland"} <= left


def test_no_distractor_is_pronounced_like_what_is_heard():
    path = Path(pocketsphinx.get_model_path()) / "en-us/cmudict-en-us.dict"
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
    heard = {sound for word, sound in lines if word.split("(")[0] in {*SPOKEN, "maine"}}
    assert heard
    sound_alike = {word.split("(")[0] for word, sound in lines if sound in heard}
    assert "mayne" in sound_alike
    assert not every_distractor() & sound_alike


def test_distractors_have_four_letters_or_more_and_nothing_else():
    assert all(re.fullmatch("[a-z]{4,}", word) for word in every_distractor())


def test_a_word_list_of_the_users_replaces_the_dictionary(tmp_path):
    path = tmp_path / "worte.txt"
    path.write_text("Bürste\nund\n\nStraße\nB2B-Handel\nHypertension\n高血压病人\n病人血压\nBÜRSTE\n", encoding="utf-8")
    words = distractor_words(3, {"hypertension", *"病人血压"}, ["straßenbahn"], 0, path)
    # Spoken are all characters of the last entry but one of the entry before it; "und" is too short, B2B no word.
    assert sorted(words) == ["bürste", "strasse", "高 血 压 病 人"]


def test_a_list_that_is_too_short_or_missing_is_named(tmp_path, caplog):
    path = tmp_path / "short.txt"
    path.write_text("lantern\n", encoding="utf-8")
    assert distractor_words(2, set(), [], 0, path) == ["lantern"]
    assert "short.txt has 1 words that nobody says, fewer than the 2 asked for" in caplog.text
    with pytest.raises(InputError, match=r"short\.txt: has no word that nobody says"):
        distractor_words(2, {"lantern"}, [], 0, path)
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        distractor_words(1, set(), [], 0, tmp_path / "none.txt")
