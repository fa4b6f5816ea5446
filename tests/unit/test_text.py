import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.text import id_problem, normalise, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("state-of-the-art", ["state", "of", "the", "art"]),
        ("it’s O`Clock ‘quoted’", ["it's", "o'clock", "quoted"]),
        ("it´s", ["it's"]),
        ("rock 'n' roll", ["rock", "n", "roll"]),
        ("ﬁne Ｗｉｄｅ", ["fine", "wide"]),
        ("Straße", ["strasse"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
        (" \t\n\u00a0", []),
        ("... --- '''", []),
        ("❤️ 😀", []),
        ("hello❤️", ["hello"]),
    ],
)
def test_words_are_folded_and_split(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize("word", ["हिन्दी", "i̇stanbul", "ΐ", "q̃uod"])
def test_vowel_signs_and_accents_do_not_split_a_word(word):
    assert len(words(word)) == 1


def test_composed_and_decomposed_spelling_are_one_surface():
    assert normalise("Cafe\u0301 Dvor\u030ca\u0301k") == normalise("Café Dvořák") == "café dvořák"


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_every_word_holds_a_letter_and_no_space(text):
    for word in words(text):
        assert any(character.isalnum() for character in word)
        assert word.split() == [word]


@pytest.mark.parametrize("identifier", ["a", "0001", "LJ002-0035", "spk_1@site+x=2.v", "_x", "Ünï", "说话人1", "a..b"])
def test_ordinary_ids_pass(identifier):
    assert id_problem(identifier) is None


@pytest.mark.parametrize(
    "identifier",
    ["", ".", "..", "../x", "/etc", "a/b", "a\\b", "a b", "a\n", "a\0b", 'a"b', "a'b", "-rf", ".hidden", "😀", "a;b",
     "a$(x)", "a\u2028", "\ud800", "x" * 201, "说" * 70],
)  # fmt: skip
def test_ids_that_could_hurt_a_file_system_or_shell_are_refused(identifier):
    assert id_problem(identifier)


@given(st.text())
def test_an_accepted_id_is_one_plain_file_name(identifier):
    if id_problem(identifier) is None:
        assert "/" not in identifier and identifier not in (".", "..")
        assert len(f"{identifier}-t000.wav".encode()) <= 255
