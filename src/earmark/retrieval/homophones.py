"""Which texts are said alike: what the ear cannot tell apart is never a negative."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache

from earmark.pronunciations import PHONEMES, EnglishPronouncer, Phonemes
from earmark.text import words

_LETTER_OF = {phoneme: chr(ord("A") + number) for number, phoneme in enumerate(PHONEMES)}
_REMEMBERED = 2**16  # words


class Homophones:
    """Which of `surfaces` are said alike, by all that `pronouncer` knows or guesses.

    Words that nobody knows to pronounce have no homophones here. Without a `pronouncer` (other languages than English)
    only spelling counts.
    """

    def __init__(self, surfaces: Collection[str], pronouncer: EnglishPronouncer | None):
        self.said: dict[str, list[str]] = {}  # surface -> its ways, a letter a phoneme
        for surface in surfaces if pronouncer is not None else ():
            assert pronouncer is not None
            self.said[surface] = _ways([_spelled(pronouncer.ways(word)) for word in words(surface)])

    @property
    def most_alike(self) -> int:
        """The most surfaces that share a way to be said."""
        return max(Counter(way for ways in self.said.values() for way in ways).values(), default=0)

    def alike(self, one: str, other: str) -> bool:
        """Whether some way to say `one` is a way to say `other`."""
        return one == other or not set(self.said.get(one, ())).isdisjoint(self.said.get(other, ()))


class KnownWays:
    """ways(text): how it is said by lexicon and dictionary; none where a word is in neither, or without a `pronouncer`.

    For texts by the million: a guess takes 5 ms a word.
    """

    def __init__(self, pronouncer: EnglishPronouncer | None):
        known = pronouncer.known if pronouncer is not None else lambda word: []
        self._of_word = lru_cache(_REMEMBERED)(lambda word: _spelled(known(word)))

    def __call__(self, text: str) -> list[str]:
        return _ways([self._of_word(word) for word in words(text)])


def _spelled(ways: Sequence[Phonemes]) -> list[str]:
    return ["".join(_LETTER_OF[phoneme] for phoneme in way) for way in ways]


def _ways(by_word: Sequence[Sequence[str]]) -> list[str]:
    """The first way of all words, and those in which one word is said otherwise."""
    if not by_word or not all(by_word):
        return []
    first = [ways[0] for ways in by_word]
    others = ["".join([*first[:i], way, *first[i + 1 :]]) for i, ways in enumerate(by_word) for way in ways[1:]]
    return list(dict.fromkeys(["".join(first), *others]))
