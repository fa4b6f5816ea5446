"""Searching a glossary by alignment: n-grams name the candidates, alignment ranks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from earmark.retrieval.background import Background
from earmark.retrieval.ngram_search import NgramSearch
from earmark.retrieval.surroundings import Surroundings, surroundings
from earmark.retrieval.term_alignment import alignment_scores, emissions, locate
from earmark.retrieval.term_units import pad_units
from earmark.retrieval.unit_ngrams import sparse_ngram_vectors

_BY_MEAN = 0.25  # the share of the candidates that are chosen by their mean n-gram
_BACKGROUND_CANDIDATES = 500  # words of the background that may explain a chunk: the most frequent and the best heard
_ALWAYS_FREQUENT = 200  # of them; words of one or two units, which n-grams cannot tell
_ROWS = 4096  # turned into n-grams at once
_HEARD = ("sentence_embedding", "frame_lengths")  # what the background is chosen by
_LEAST = -100.0  # the score of a term that does not fit at all, as one with more units than the chunk has frames


class AlignmentIndex:
    """Row i is a term spelled `spellings[i]` in units (ids from 1 to `inventory_size`).

    N-gram vectors are sparse, some twenty of 1,560 dimensions, and searched exactly (`ngram_search`), in less memory
    and time than a dense index would take for an approximate answer (docs/design.md has the figures).

    With a `background` a score says by how much a chunk is explained better with the term than without it (see
    `surroundings`), else how much of the term is heard.
    """

    def __init__(self, spellings: Sequence[Sequence[int]], inventory_size: int, background: Background | None = None):
        self.spellings = spellings
        self.inventory_size = inventory_size
        self.background = background

    @cached_property
    def _ngrams(self) -> NgramSearch:
        units = self._units["units"].numpy()
        blocks = [
            sparse_ngram_vectors(units[row : row + _ROWS], self.inventory_size) for row in range(0, len(units), _ROWS)
        ]
        return NgramSearch.of(sparse.vstack(blocks, format="csr", dtype=np.float32), self.inventory_size)

    @cached_property
    def _units(self) -> Mapping[str, torch.Tensor]:
        # Half as wide as PyTorch wants them for an index: the rows of candidates are fetched from all over this table.
        return {name: values.to(torch.int32) for name, values in pad_units(self.spellings).items()}

    @torch.no_grad()
    def search(self, heard: Mapping[str, Any], candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """rows[B, K] and their alignment scores[B, K], unordered; K is `candidates`, or all rows if they are fewer."""
        vectors = heard["sentence_embedding"].detach().cpu().numpy()
        rows = len(self.spellings)
        chosen = np.stack([self.candidates(vector, candidates) for vector in vectors])
        device = heard["unit_log_probs"].device
        index = torch.from_numpy(chosen if rows > candidates else np.arange(rows))
        counts = self._units["unit_counts"][index]
        units = self._units["units"][index][..., : int(counts.max())]
        emitted = emissions(heard["unit_log_probs"], heard["frame_lengths"])
        scores = alignment_scores(emitted, units.to(device), counts.to(device), self._around(heard, emitted))
        return chosen, scores.detach().clamp(min=_LEAST).cpu().numpy()

    @cached_property
    def _words(self) -> tuple[AlignmentIndex, torch.Tensor] | None:
        """The background's words that are no term, searched like terms, and their costs."""
        words = self.background.without(self.spellings) if self.background is not None else None
        if words is None or not words.words:
            return None
        return AlignmentIndex(words.spellings, self.inventory_size), torch.tensor(words.costs())

    def _around(self, heard: Mapping[str, Any], emitted: torch.Tensor) -> Surroundings | None:
        if self._words is None:
            return None
        words, costs = self._words
        frequent = np.arange(min(_ALWAYS_FREQUENT, len(costs)))
        count = min(_BACKGROUND_CANDIDATES, len(costs))
        vectors = heard["sentence_embedding"].detach().cpu().numpy()
        # The same number for every chunk: what is chosen twice stands twice, which changes no best path.
        chosen = np.stack([np.append(frequent, words.candidates(vector, count)) for vector in vectors])
        index = torch.from_numpy(chosen)
        counts = words._units["unit_counts"][index]
        units = words._units["units"][index][..., : int(counts.max())]
        device = emitted.device
        lengths = heard["frame_lengths"].to(device)
        return surroundings(emitted, lengths, units.to(device), counts.to(device), costs[index].to(device))

    def candidates(self, vector: np.ndarray, count: int) -> np.ndarray:
        """The `count` rows whose n-grams a chunk of this vector holds best; all rows, if there are no more.

        Those of the largest product, and for a part those of the largest per n-gram: else no short term gets in.
        """
        if len(self.spellings) <= count:
            return np.arange(len(self.spellings))
        by_mean = round(_BY_MEAN * count)
        return self._ngrams.best(vector, count - by_mean, by_mean)

    @torch.no_grad()
    def locate(self, heard: Mapping[str, Any], chunk: int, rows: Sequence[int]) -> list[tuple[int, int]]:
        """The first and last frame of each of `rows` in one of the heard chunks."""
        one = slice(chunk, chunk + 1)
        emitted = emissions(heard["unit_log_probs"][one], heard["frame_lengths"][one]).cpu()
        units = pad_units([self.spellings[row] for row in rows])
        around = self._around({name: values[one] for name, values in heard.items() if name in _HEARD}, emitted)
        first, last = locate(emitted[0], units["units"], units["unit_counts"], around)
        return list(zip(first.tolist(), last.tolist(), strict=True))
