"""Distractors: words that nobody says, added to the index to see how retrieval stands up to a large glossary."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Collection
from pathlib import Path

from earmark.errors import InputError
from earmark.pronunciations import english_dictionary
from earmark.text import normalise

log = logging.getLogger(__name__)

MIN_LETTERS = 4


def distractor_words(
    count: int, spoken_words: Collection[str], surfaces: Collection[str], seed: int, word_list: Path | None = None
) -> list[str]:
    """`count` normalised words out of the English dictionary in PocketSphinx's wheel that are in nobody's mouth.

    Dropped are words of fewer than MIN_LETTERS letters or with anything but letters in them, `spoken_words` (the
    normalised words of what is evaluated; a word cut off at a chunk's edge may be missing from them), words of
    `surfaces`, and homophones: words that share a pronunciation with a spoken word or with a surface of one word. Audio
    cannot tell those apart, so a retriever that ranks them first is not wrong. (A spoken word that the dictionary lacks
    has no known homophones, and what is heard across two words, such as "acorn" in "a corn", stays in.)

    The order is that of a hash of seed and word: 1,000 are the first of 10,000. `word_list`, a text file with one entry
    a line, replaces the dictionary for other languages; pronunciations are then unknown and homophones stay in. An
    entry of several words (each Chinese character is one) is dropped when all of them are spoken or in surfaces.
    Where fewer than `count` words
    are left, these (a warning). InputError if the file cannot be read or none is left.
    """
    avoided = {*spoken_words, *(word for surface in surfaces for word in surface.split())}
    if word_list is None:
        candidates = _without_homophones({*spoken_words, *(surface for surface in surfaces if " " not in surface)})
    else:
        candidates = _read_words(word_list)
    usable = [word for word in candidates if _is_usable(word) and not avoided.issuperset(word.split())]
    if not usable:
        raise InputError(
            f"{word_list or 'the English dictionary'}: has no word that nobody says; name a longer word list"
        )
    if len(usable) < count:
        source = word_list or "the English dictionary"
        log.warning("%s has %d words that nobody says, fewer than the %d asked for", source, len(usable), count)
    return sorted(usable, key=lambda word: hashlib.sha256(f"{seed}:{word}".encode()).digest())[:count]


def _without_homophones(heard: Collection[str]) -> set[str]:
    """The dictionary's words but those that share a pronunciation with a heard word, itself included."""
    pronunciations = english_dictionary()
    sounds = {tuple(phonemes) for word in heard for phonemes in pronunciations.get(word, ())}
    return {word for word, own in pronunciations.items() if sounds.isdisjoint(map(tuple, own))}


def _read_words(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as a word list ({error}); give a UTF-8 file, one word a line"
        ) from None
    return {word for line in lines if (word := normalise(line))}


def _is_usable(entry: str) -> bool:
    """Whether an entry has MIN_LETTERS letters and, but for the marks upon them, nothing else."""
    kinds = [unicodedata.category(character)[0] for character in entry.replace(" ", "")]
    return set(kinds) <= {"L", "M"} and kinds.count("L") >= MIN_LETTERS
