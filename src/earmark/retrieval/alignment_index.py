"""Searching a glossary by alignment: n-grams name the candidates, alignment ranks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from earmark.retrieval.term_alignment import alignment_scores, emissions, locate
from earmark.retrieval.term_units import pad_units
from earmark.retrieval.unit_ngrams import ngram_vectors

_BY_MEAN = 0.25  # the share of the candidates that are chosen by their mean n-gram
_ROWS = 4096  # turned into n-grams at once
_LEAST = -100.0  # the score of a term that does not fit at all, as one with more units than the chunk has frames


class AlignmentIndex:
    """Row i is a term spelled `spellings[i]` in units (ids from 1 to `inventory_size`).

    N-gram vectors are sparse, some fifteen of 1,560 dimensions: a compressed matrix of them is searched exactly, in
    less memory and time than a dense index would take for an approximate answer (docs/design.md has the figures).
    """

    def __init__(self, spellings: Sequence[Sequence[int]], inventory_size: int):
        self.spellings = spellings
        self.inventory_size = inventory_size

    @cached_property
    def _ngrams(self) -> sparse.csr_matrix:
        blocks = [
            sparse.csr_matrix(ngram_vectors(pad_units(self.spellings[row : row + _ROWS])["units"], self.inventory_size))
            for row in range(0, len(self.spellings), _ROWS)
        ]
        return sparse.vstack(blocks, format="csr", dtype=np.float32)

    @cached_property
    def _ngram_counts(self) -> np.ndarray:
        return np.diff(self._ngrams.indptr).astype(np.float32)

    @cached_property
    def _units(self) -> Mapping[str, torch.Tensor]:
        return pad_units(self.spellings)

    def search(self, heard: Mapping[str, Any], candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """rows[B, K] and their alignment scores[B, K], unordered; K is `candidates`, or all rows if they are fewer."""
        vectors = heard["sentence_embedding"].detach().cpu().numpy()
        chunks, rows = len(vectors), len(self.spellings)
        if rows <= candidates:
            chosen = np.broadcast_to(np.arange(rows), (chunks, rows))
        else:
            chosen = np.stack([self._candidates(vector, candidates) for vector in vectors])
        device = heard["unit_log_probs"].device
        index = torch.from_numpy(chosen if rows > candidates else np.arange(rows))
        counts = self._units["unit_counts"][index]
        units = self._units["units"][index][..., : int(counts.max())]
        emitted = emissions(heard["unit_log_probs"], heard["frame_lengths"])
        scores = alignment_scores(emitted, units.to(device), counts.to(device))
        return chosen, scores.detach().clamp(min=_LEAST).cpu().numpy()

    def _candidates(self, vector: np.ndarray, count: int) -> np.ndarray:
        """Those of the largest product, and for a part those of the largest per n-gram: else no short term gets in."""
        sums = self._ngrams @ vector
        first = count - round(_BY_MEAN * count)
        by_sum = np.argpartition(-sums, first)[:first]
        means = sums / self._ngram_counts
        means[by_sum] = -np.inf
        rest = count - len(by_sum)
        return np.concatenate([by_sum, np.argpartition(-means, rest)[:rest]])

    def locate(self, heard: Mapping[str, Any], chunk: int, rows: Sequence[int]) -> list[tuple[int, int]]:
        """The first and last frame of each of `rows` in one of the heard chunks."""
        one = slice(chunk, chunk + 1)
        emitted = emissions(heard["unit_log_probs"][one], heard["frame_lengths"][one])[0].cpu()
        units = pad_units([self.spellings[row] for row in rows])
        first, last = locate(emitted, units["units"], units["unit_counts"])
        return list(zip(first.tolist(), last.tolist(), strict=True))
