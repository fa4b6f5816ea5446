"""Large contrastive batches in little memory: GradCache.

A contrastive loss wants many chunks at once, and a large network's activations of them do not fit a GPU. What the loss
looks at does: one vector a chunk. So a batch goes through the network in sub-batches, of which only the vectors are
kept; the loss is computed on all of them; and its gradient goes back one sub-batch at a time, each run a second time
just before, with the random numbers (dropout) that it drew the first time. Gradients are those of the whole batch, for
the memory of one sub-batch and one more forward pass. After Gao et al. (2021), "Scaling deep contrastive learning batch
size under memory limited setup", https://arxiv.org/abs/2101.06983; the second run is torch's activation checkpointing.
Where no gradient is asked for, as on dev, a batch is divided all the same, and each part is run once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def embed_in_sub_batches(
    embed: Callable[[dict[str, Any]], dict[str, Any]], features: dict[str, Any], size: int
) -> dict[str, Any]:
    """ "sentence_embedding"[B, dim] that `embed` gives for `features`, tensors[B, ...], `size` rows at a time."""

    def vectors(part: dict[str, Any]) -> torch.Tensor:
        return embed(dict(part))["sentence_embedding"]

    (rows,) = {len(value) for value in features.values() if isinstance(value, torch.Tensor)}
    parts = [_rows(features, start, start + size) for start in range(0, rows, size)]
    if not torch.is_grad_enabled():
        return {"sentence_embedding": torch.cat([vectors(part) for part in parts])}
    return {"sentence_embedding": torch.cat([checkpoint(vectors, part, use_reentrant=False) for part in parts])}


def _rows(features: dict[str, Any], start: int, end: int) -> dict[str, Any]:
    return {name: value[start:end] if isinstance(value, torch.Tensor) else value for name, value in features.items()}
