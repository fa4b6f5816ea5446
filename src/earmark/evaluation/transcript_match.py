"""Finding glossary terms in transcripts by fuzzy matching: what one would do without a retriever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from earmark.text import words

Pronounce = Callable[[str], Sequence[str] | None]

# A recogniser that does not know a term writes it as more words than it has: "kilimanjaro", "Killy man jar oh".
EXTRA_WORDS = 2
# Symbols that every surface is taken to be longer, which nothing matches: of two surfaces that fit equally well, the
# longer one fits by less chance. Without this, short words that nobody said outrank long terms that were misheard.
UNMATCHED = 3
_PRIVATE_USE = 0xE000  # a plane of characters that no text holds


class TranscriptMatcher:
    """Scores every surface of a glossary by how well it fits somewhere in a transcript.

    A surface is compared with every run of a transcript's words (up to EXTRA_WORDS more than the longest surface has),
    blanks left out on both sides, because misheard terms are cut into other words. The score is that of the best run:
    the normalised Levenshtein similarity, times length / (length + UNMATCHED), of letters, or of phonemes where
    `pronounce` gives a word's pronunciation (a word for which it returns None keeps its letters, which match the same
    word alone). Runs of whole words rather than rapidfuzz's `partial_ratio`: a short surface is then not found inside
    longer words, a transcript shorter than a surface does not match a part of it, and it takes half the time.
    """

    def __init__(self, surfaces: Sequence[str], pronounce: Pronounce | None = None, threads: int = 1):
        """`surfaces` are normalised. `threads` share the comparisons of one transcript."""
        self._encode = _letters if pronounce is None else _phonemes(pronounce)
        self._surfaces = ["".join(self._encode(word) for word in surface.split()) for surface in surfaces]
        lengths = np.array([len(surface) for surface in self._surfaces], np.float32)
        self._weights = lengths / (lengths + UNMATCHED)
        self._longest_run = EXTRA_WORDS + max(len(surface.split()) for surface in surfaces)
        self._threads = threads

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """scores[B, surfaces] from 0 to 1 of transcripts as the recogniser wrote them; 0 for an empty one."""
        return np.stack([self._similarities(text) for text in texts]) * self._weights

    def _similarities(self, text: str) -> np.ndarray:
        """The best similarity[surfaces] of any run of the words in `text`."""
        encoded = [self._encode(word) for word in words(text)]
        runs = {
            "".join(encoded[start:end])
            for start in range(len(encoded))
            for end in range(start + 1, min(start + self._longest_run, len(encoded)) + 1)
        }
        if not runs:
            return np.zeros(len(self._surfaces), np.float32)
        similarities = cdist(
            list(runs),
            self._surfaces,
            scorer=Levenshtein.normalized_similarity,
            dtype=np.float32,
            workers=self._threads,
        )
        return similarities.max(axis=0)


def _letters(word: str) -> str:
    return word


def _phonemes(pronounce: Pronounce) -> Callable[[str], str]:
    """A function that writes a word's phonemes as one character each."""
    symbols: dict[str, str] = {}

    @cache
    def encode(word: str) -> str:
        phonemes = pronounce(word)
        if not phonemes:
            return word
        return "".join(symbols.setdefault(phoneme, chr(_PRIVATE_USE + len(symbols))) for phoneme in phonemes)

    return encode
