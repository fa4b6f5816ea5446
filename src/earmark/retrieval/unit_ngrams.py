"""One vector for a term, one for a chunk, whose inner product tells which terms are worth aligning.

A dimension for every unit and every pair of neighbouring units. A term's vector marks its own; a chunk's says how well
each is heard at its best moment, less what an absent one would get. Their product is the MaxSim of late interaction,
summed over the term's n-grams, which an index can search; what it cannot see is the order of the pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from sentence_transformers.base.modules import Module

from earmark.retrieval import compiled_paths
from earmark.retrieval.compiled_paths import NEVER
from earmark.retrieval.module_files import SavedModule
from earmark.retrieval.term_alignment import emissions

_ABSENT = 0.25  # what an n-gram costs a term that is not heard, so that long terms do not win by length
_SPAN = 4.0  # nats below the frame's best units at which an n-gram counts as not heard
_UNIT_WEIGHT = 0.5  # of a single unit beside a pair


def ngram_vectors(units: torch.Tensor, inventory: int) -> torch.Tensor:
    """vectors[N, inventory ** 2 + inventory], of 0 and 1, of units[N, L] (ids from 1, 0 after a row's end)."""
    vectors = torch.zeros(len(units), inventory**2 + inventory + 1, device=units.device)
    spare = inventory**2 + inventory  # takes what padding marks
    pairs = (units[:, :-1] - 1) * inventory + units[:, 1:] - 1
    vectors.scatter_(1, torch.where(units[:, 1:] > 0, pairs, spare), 1.0)
    vectors.scatter_(1, torch.where(units > 0, inventory**2 + units - 1, spare), 1.0)
    return vectors[:, :spare]


def sparse_ngram_vectors(units: np.ndarray, inventory: int) -> sparse.csr_matrix:
    """The same as a compressed matrix, made without the zeros: those of 20,000 words take a second to look through."""
    dim = inventory**2 + inventory
    first, second = units[:, :-1], units[:, 1:]
    places = np.hstack([np.where(second > 0, (first - 1) * inventory + second - 1, -1),
                        np.where(units > 0, inventory**2 + units - 1, -1)])  # fmt: skip
    rows = np.broadcast_to(np.arange(len(units))[:, None], places.shape)
    marked = np.unique((rows * dim + places)[places >= 0])  # an n-gram that comes twice is marked once
    ends = np.bincount(marked // dim, minlength=len(units)).cumsum()
    ones = np.ones(len(marked), np.float32)
    return sparse.csr_matrix((ones, marked % dim, np.append(0, ends)), shape=(len(units), dim))


class UnitNgrams(SavedModule, Module):
    """The last part of the audio route: `unit_log_probs`[B, T, U + 1] -> `sentence_embedding`[B, U ** 2 + U]."""

    config_keys = ["inventory_size"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, inventory_size: int):
        super().__init__()
        self.inventory_size = inventory_size

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        if self.training:  # no loss asks for it
            return features
        emitted = emissions(features["unit_log_probs"], features["frame_lengths"])
        pair_best, unit_best = _best_moments(emitted)
        heard = torch.cat([_heard(pair_best.flatten(1)), _UNIT_WEIGHT * _heard(unit_best)], dim=1)
        features["sentence_embedding"] = heard - _ABSENT
        return features

    def get_embedding_dimension(self) -> int:
        return self.inventory_size**2 + self.inventory_size


def _heard(best: torch.Tensor) -> torch.Tensor:
    return (1 + best / _SPAN).clamp(min=0)


def _best_moments(emitted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best path of each pair [B, U, U] and each unit [B, U] anywhere in emitted[B, T, U + 1]."""
    chunks, units = len(emitted), emitted.shape[2] - 1
    one = emitted.new_full((chunks, units), NEVER)
    two = emitted.new_full((chunks, units, units), NEVER)
    if compiled_paths.can_be_compiled(emitted):
        for frames, best_one, best_two in zip(compiled_paths.floats(emitted), one.numpy(), two.numpy(), strict=True):
            compiled_paths.best_moments(frames, best_one, best_two)
        return two, one
    blank, spoken = emitted[:, :, :1], emitted[:, :, 1:]
    best_one, best_two = one, two
    for here, rest in zip(spoken.unbind(1), torch.maximum(spoken, blank).unbind(1), strict=True):
        two = torch.maximum(two + rest[:, None, :], one[:, :, None] + here[:, None, :])
        one = torch.maximum(one + rest, here)
        best_one, best_two = torch.maximum(best_one, one), torch.maximum(best_two, two)
    return best_two, best_one
