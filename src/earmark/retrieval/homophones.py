"""Which texts are said alike: what the ear cannot tell apart is never a negative."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache

from earmark.pronunciations import PHONEMES, EnglishPronouncer, Phonemes
from earmark.text import words

_LETTER_OF = {phoneme: chr(ord("A") + number) for number, phoneme in enumerate(PHONEMES)}
_REMEMBERED = 2**16  # words and phrases of transcripts: common ones come in every step


class Homophones:
    """How `surfaces` are said: those that share a way are homophones.

    Words that nobody knows to pronounce have no homophones here. Without a `pronouncer` (other languages than English)
    only spelling counts.
    """

    def __init__(self, surfaces: Collection[str], pronouncer: EnglishPronouncer | None):
        self.said: dict[str, list[str]] = {}  # surface -> its ways, a letter a phoneme
        for surface in surfaces if pronouncer is not None else ():
            assert pronouncer is not None
            self.said[surface] = _ways([pronouncer.ways(word) for word in words(surface)])
        self._pronouncer = pronouncer
        self.ways_in_speech = lru_cache(_REMEMBERED)(self._ways_in_speech)

    @property
    def most_alike(self) -> int:
        """The most surfaces that share a way to be said."""
        return max(Counter(way for ways in self.said.values() for way in ways).values(), default=0)

    def alike(self, one: str, other: str) -> bool:
        """Whether some way to say `one` is a way to say `other`."""
        return one == other or not set(self.said.get(one, ())).isdisjoint(self.said.get(other, ()))

    def _ways_in_speech(self, text: str) -> tuple[str, ...]:
        """How words of a transcript are said; none where one is in no dictionary, for guessing takes 5 ms a word."""
        if self._pronouncer is None:
            return ()
        return tuple(_ways([self._pronouncer.known(word) for word in words(text)]))


def _ways(by_word: Sequence[Sequence[Phonemes]]) -> list[str]:
    """The first way of all words, and those in which one word is said otherwise."""
    if not by_word or not all(by_word):
        return []
    said = [["".join(_LETTER_OF[phoneme] for phoneme in way) for way in ways] for ways in by_word]
    first = [ways[0] for ways in said]
    others = ["".join([*first[:i], way, *first[i + 1 :]]) for i, ways in enumerate(said) for way in ways[1:]]
    return list(dict.fromkeys(["".join(first), *others]))
