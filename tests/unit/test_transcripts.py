import pytest

from earmark.corpus.transcripts import (
    GARBAGE_TAGS,
    PUNCTUATION_TAGS,
    transcript_problem,
    without_punctuation_tags,
)
from earmark.text import words


@pytest.mark.parametrize("tag", PUNCTUATION_TAGS)
def test_a_punctuation_tag_is_no_word_and_parts_words(tag):
    for text in (f"yes {tag} no", f"yes{tag}no", f"yes {tag.lower()} no", f"{tag} yes no {tag}"):
        assert transcript_problem(text) is None
        assert words(without_punctuation_tags(text)) == ["yes", "no"]


@pytest.mark.parametrize("tag", GARBAGE_TAGS)
def test_a_garbage_tag_anywhere_marks_what_was_not_transcribed(tag):
    for text in (tag, tag.lower(), f"yes {tag} no", f"{tag} <PERIOD>"):
        reason, detail = transcript_problem(text)
        assert reason == "garbage_tag"
        assert tag.lower() in detail.lower()


@pytest.mark.parametrize("tag", ["<unk>", "<UNK>", "<laughter>", "<spoken_noise>", "<s>", "[laughter]", "[NOISE]"])
def test_any_other_tag_is_named_as_no_word(tag):
    reason, detail = transcript_problem(f"yes {tag} <COMMA> no")
    assert reason == "unknown_tag"
    assert tag in detail


@pytest.mark.parametrize(
    "text",
    ["", "two words", "2 < 3", "a < b and c > d", "1 <> 2", "<not closed", "closed>", "手机", "x [a b] y", "[] ]["],
)
def test_text_without_tags_passes(text):
    assert transcript_problem(text) is None
    assert without_punctuation_tags(text) == text
