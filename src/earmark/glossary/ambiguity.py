"""Aliases that claim more than their term: "krista" for Krista Siegfrids is every Krista."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cache

import wordfreq

from earmark.text import readable

# The share of running words above which a word is common. English: "apple", "paris" and "smith" are, "python" and most
# surnames are not. German: "kohl" and "bayern" are. Chinese: 苹果 and 清华 are, 特斯拉 and 光合作用 are not.
COMMON_SHARE = 8e-6


class AmbiguousAliases:
    """Finds them by three signs.

    `main_terms`, `aliases`: all of the glossary, normalised. `language`: a code (en, de, zh, pt-BR); of a language
    whose words wordfreq has not counted, common words are not known.
    """

    def __init__(self, main_terms: Iterable[str], aliases: Iterable[str], language: str):
        self._language = language
        self._single = {alias for alias in aliases if is_one_word(alias)}
        self._holders = _holders(main_terms, self._single)

    def problem(self, alias: str, main: str) -> str | None:
        """Why `alias` alone would claim speech that does not mean `main`, or None. Only single words are ambiguous.

        The first of a term's words is found where blanks or a change of script show it: in Chinese and Japanese nothing
        says where the first word of a name ends, so there the other two signs must do.
        """
        if alias not in self._single:
            return None
        words = main.split()
        if len(words) > 1 and alias == words[0]:
            return f"the first word of {main!r}, and of everything else that begins so"
        if others := sorted(self._holders.get(alias, set()) - {main}):
            return f"also a word of {others[0]!r}"
        if word_share(alias, self._language) > COMMON_SHARE:
            return f"a common word (language: {self._language})"
        return None


def is_one_word(surface: str) -> bool:
    """Whether the normalised `surface` is written without a blank, as Chinese and Japanese words of any length are."""
    return " " not in readable(surface)


def word_share(word: str, language: str) -> float:
    """The share of a normalised `word` in running text of `language`, 0 where unknown: wordfreq's counts of subtitles,
    news, books, Wikipedia and the web. Chinese is counted in simplified characters."""
    return _shares(language).get(readable(word), 0.0)


def _holders(main_terms: Iterable[str], singles: Collection[str]) -> dict[str, set[str]]:
    """Each of `singles` that is part of a longer main term -> those main terms."""
    longest = max((len(word.split()) for word in singles), default=0)
    holders: dict[str, set[str]] = defaultdict(set)
    for main in main_terms:
        words = main.split()
        for length in range(1, min(longest, len(words) - 1) + 1):
            for first in range(len(words) - length + 1):
                part = " ".join(words[first : first + length])
                if part in singles:
                    holders[part].add(main)
    return dict(holders)


@cache
def _shares(language: str) -> Mapping[str, float]:
    try:
        return wordfreq.get_frequency_dict(language, "best")
    except (LookupError, ValueError):  # langcodes' error for what is no code is a ValueError
        logging.warning(
            "no word frequencies for the language %r: that an alias is a common word goes unnoticed; known are %s",
            language, ", ".join(sorted(wordfreq.available_languages("best"))),
        )  # fmt: skip
        return {}
