"""Aliases that claim more than their term: "krista" for Krista Siegfrids is every Krista."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pocketsphinx

# The share of running English words above which a word is common: "apple" and "paris" are, "python" and most surnames
# are not.
COMMON_SHARE = 5e-6
_LOG_BASE = 1.0001  # of the language model's integers


class AmbiguousAliases:
    """Finds them by three signs. `main_terms`: all of the glossary, normalised."""

    def __init__(self, main_terms: Iterable[str]):
        self._holders: dict[str, set[str]] = defaultdict(set)  # word -> the longer main terms that hold it
        for main in main_terms:
            words = main.split()
            if len(words) > 1:
                for word in words:
                    self._holders[word].add(main)

    def problem(self, alias: str, main: str) -> str | None:
        """Why `alias` alone would claim speech that does not mean `main`, or None. Only single words are ambiguous."""
        if " " in alias:
            return None
        words = main.split()
        if len(words) > 1 and alias == words[0]:
            return f"the first word of {main!r}, and of everything else that begins so"
        if others := sorted(self._holders[alias] - {main}) if alias in self._holders else []:
            return f"also a word of {others[0]!r}"
        if word_share(alias) > COMMON_SHARE:
            return "a common English word"
        return None


def word_share(word: str) -> float:
    """The share of `word` in running English speech, 0 where unknown: the unigrams of PocketSphinx's language model."""
    model = _language_model()
    log_probability = model.prob([word])
    return _LOG_BASE**log_probability if log_probability > -10_000_000 else 0.0


@cache
def _language_model() -> pocketsphinx.NGramModel:
    return pocketsphinx.NGramModel.readfile(str(Path(pocketsphinx.get_model_path()) / "en-us/en-us.lm.bin"))
