"""The text route of an alignment retriever: a surface as the units it is spoken in, and their n-grams."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule

from earmark.errors import ConfigError, InputError
from earmark.pronunciations import PHONEMES, EnglishPronouncer, Phonemes
from earmark.retrieval.module_files import SavedModule
from earmark.retrieval.unit_ngrams import ngram_vectors
from earmark.text import words

PADDING = 0  # unit ids count from 1; in audio, 0 is the blank between units
MOST_SPELLINGS = 4  # of a surface; words of several pronunciations multiply
MOST_UNITS = 128  # of a spelling
MOST_LETTERS = 64  # in an inventory: n-gram vectors grow with its square
MOST_RARE = 0.01  # share of the texts' letters that may lie beyond them: names from elsewhere


class TermUnits(SavedModule, InputModule):
    """Surfaces as sequences of units: CMU phonemes of English, or letters of any language that is spelled with few.

    `inventory[i]` has the unit id i + 1. `lexicon` adds pronunciations to the dictionary's (phonemes only). A word in
    neither is guessed from its spelling.
    """

    config_keys = ["units", "inventory", "lexicon"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, units: str, inventory: Sequence[str], lexicon: Mapping[str, Sequence[Phonemes]]):
        super().__init__()
        self.units, self.inventory = units, list(inventory)
        self.lexicon = {word: [list(spelling) for spelling in spellings] for word, spellings in lexicon.items()}
        self._ids = {unit: number for number, unit in enumerate(self.inventory, start=1)}
        self._pronouncer = EnglishPronouncer(self.lexicon)
        self._spelled: dict[str, list[Phonemes]] = {}

    @classmethod
    def of(cls, units: str, texts: Iterable[str], lexicon: Mapping[str, Sequence[Phonemes]]) -> TermUnits:
        """`units`: phonemes or letters; the letters are those of `texts`. those beyond the
        MOST_LETTERS most frequent cannot be spelled. ConfigError where they are too many."""
        if units == "phonemes":
            return cls(units, PHONEMES, lexicon)
        found = Counter(letter for text in texts for word in words(text) for letter in _letters(word))
        letters = sorted(letter for letter, _ in found.most_common(MOST_LETTERS))
        rare = found.total() - sum(found[letter] for letter in letters)
        if rare > MOST_RARE * found.total():
            raise ConfigError(
                f"retrieval.alignment.units: {rare / found.total():.1%} of the texts are letters beyond the "
                f"{MOST_LETTERS} most frequent; a language of so many is better served by retrieval.interaction: pooled"
            )
        return cls(units, letters, {})

    def spellings(self, surface: str) -> list[list[int]]:
        """The unit ids of each way to say `surface`, at most MOST_SPELLINGS; empty where a word has no known way."""
        ways = [self._word(word) for word in words(surface)]
        if not ways or not all(ways):
            return []
        first = [way[0] for way in ways]
        # Each word varied alone before two at once: the likeliest way with the likeliest exception.
        alone = [[*first[:i], other, *first[i + 1 :]] for i, way in enumerate(ways) for other in way[1:]]
        rest = (list(some) for some in itertools.product(*ways) if some != tuple(first) and list(some) not in alone)
        chosen = itertools.islice(itertools.chain([first], alone, rest), MOST_SPELLINGS)
        ids = [[self._ids[unit] for way in combination for unit in way] for combination in chosen]
        return [spelling for spelling in ids if 0 < len(spelling) <= MOST_UNITS]

    def transcript(self, text: str) -> list[int]:
        """The unit ids of a transcript of any length, each word said the first way; empty where one has none."""
        ways = [self._word(word) for word in words(text)]
        return [self._ids[unit] for way in ways for unit in way[0]] if all(ways) else []

    def known_spellings(self, surface: str) -> list[list[int]]:
        """`spellings`; InputError where there is none."""
        if not (spellings := self.spellings(surface)):
            cure = "add its words to align.embedded.lexicon" if self.units == "phonemes" else "train with its letters"
            raise InputError(f"{surface!r} cannot be spelled in known {self.units}; {cure}, or remove it")
        return spellings

    def _word(self, word: str) -> list[Phonemes]:
        if word not in self._spelled:
            self._spelled[word] = self._pronouncer.ways(word) if self.units == "phonemes" else self._write(word)
        return self._spelled[word]

    def _write(self, word: str) -> list[Phonemes]:
        letters = _letters(word)
        return [letters] if letters and all(letter in self._ids for letter in letters) else []

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs` are surfaces, each in its first spelling; InputError if one has none."""
        return pad_units([self.known_spellings(text)[0] for text in inputs])

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        features["sentence_embedding"] = ngram_vectors(features["units"], len(self.inventory))
        return features

    def get_embedding_dimension(self) -> int:
        return len(self.inventory) ** 2 + len(self.inventory)


def pad_units(spellings: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """{"units"[N, L], PADDING after each spelling's end, "unit_counts"[N]}."""
    counts = np.array([len(spelling) for spelling in spellings])
    units = np.full((len(spellings), counts.max()), PADDING)
    # All at once: an index pads 20,000 words of its background before the first search.
    units[np.arange(units.shape[1]) < counts[:, None]] = np.fromiter(itertools.chain.from_iterable(spellings), np.int64)
    return {"units": torch.from_numpy(units), "unit_counts": torch.from_numpy(counts)}


def _letters(word: str) -> tuple[str, ...]:
    """The letters and digits of a word; what a keyboard may leave out, such as an apostrophe, is no unit."""
    return tuple(c for c in unicodedata.normalize("NFC", word) if c.isalnum() or unicodedata.category(c)[0] == "M")
