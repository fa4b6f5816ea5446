"""The words of a language, as units: what is said where no term is (see `surroundings`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import wordfreq

from earmark.pronunciations import english_dictionary
from earmark.retrieval.term_units import TermUnits
from earmark.text import normalise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Background:
    """Row i is the word `words[i]`, spelled `spellings[i]` in units, `shares[i]` of running text; most frequent first.

    A word of several pronunciations has several rows, each with the share of all.
    """

    words: Sequence[str]
    shares: Sequence[float]
    spellings: Sequence[Sequence[int]]

    def without(self, spellings: Sequence[Sequence[int]]) -> Background:
        """The rows that sound like none of `spellings`: a glossary's term is no background. Each sound once."""
        taken = {tuple(spelling) for spelling in spellings}
        rows = []
        for row, spelling in enumerate(self.spellings):
            if tuple(spelling) not in taken:
                taken.add(tuple(spelling))
                rows.append(row)
        return Background(
            [self.words[row] for row in rows],
            [self.shares[row] for row in rows],
            [self.spellings[row] for row in rows],
        )

    def costs(self) -> list[float]:
        """Nats of each row."""
        return [-math.log(share) for share in self.shares]


def background_words(units: TermUnits, language: str, count: int) -> Background | None:
    """The `count` most frequent words of `language` (wordfreq's counts) that `units` can spell for certain.

    English words are those of the dictionary and the lexicon: a guessed pronunciation is good for a term, not for
    20,000 words. None where `count` is 0, or wordfreq does not know the language (a warning).
    """
    if not count:
        return None
    try:
        shares = wordfreq.get_frequency_dict(language, "best")
    except (LookupError, ValueError):  # langcodes' error for what is no code is a ValueError
        log.warning(
            "no word frequencies for the language %r: terms are not weighed against its words; known are %s",
            language, ", ".join(sorted(wordfreq.available_languages("best"))),
        )  # fmt: skip
        return None
    words, rows = 0, []
    for word, share in sorted(shares.items(), key=lambda item: (-item[1], item[0])):
        if words == count:
            break
        if spellings := _certain_spellings(units, word):
            words += 1
            rows += [(word, share, spelling) for spelling in spellings]
    return Background(*zip(*rows, strict=True)) if rows else None


def _certain_spellings(units: TermUnits, word: str) -> list[list[int]]:
    written = normalise(word)
    if not written or (
        units.units == "phonemes" and written not in units.lexicon and written not in english_dictionary()
    ):
        return []
    return units.spellings(written)
