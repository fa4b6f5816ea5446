"""Transcripts as corpora write them: which are speech at all, and what in them is no word."""

from __future__ import annotations

import re

# GigaSpeech spells punctuation as words and marks segments that hold no transcribed speech (Chen et al. 2021,
# https://arxiv.org/abs/2106.06909, section 3.5).
PUNCTUATION_TAGS = ("<COMMA>", "<PERIOD>", "<QUESTIONMARK>", "<EXCLAMATIONPOINT>")
GARBAGE_TAGS = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")

_PUNCTUATION = re.compile("|".join(PUNCTUATION_TAGS), re.IGNORECASE)
_GARBAGE = re.compile("|".join(GARBAGE_TAGS), re.IGNORECASE)
_TAG = re.compile(r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]")


def without_punctuation_tags(text: str) -> str:
    """`text` with GigaSpeech's punctuation tags as the blanks they are to a listener."""
    return _PUNCTUATION.sub(" ", text) if "<" in text else text


def transcript_problem(text: str) -> tuple[str, str] | None:
    """(reason, detail) why `text` is no transcript of speech, or None.

    garbage_tag: one of GARBAGE_TAGS. unknown_tag: anything else in angle or square brackets, such as <unk> or
    [laughter], which would be taken for a word.
    """
    if "<" not in text and "[" not in text:
        return None
    if found := _GARBAGE.search(text):
        return "garbage_tag", f"the text holds {found[0]}: no transcribed speech"
    if found := _TAG.search(_PUNCTUATION.sub(" ", text)):
        return "unknown_tag", f"the text holds {found[0]}, which is no word; take it out or mend the transcript"
    return None
