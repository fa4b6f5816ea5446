"""A spoken term scores above those it is easily taken for, by a margin."""

from __future__ import annotations

import torch
from torch import nn


class HardNegativeMarginLoss(nn.Module):
    """max(0, margin - own score + negative's score), mean over a chunk's hard negatives, then over chunks with some.

    audio[B, dim], own[B, dim] and negatives[M, dim] are unit vectors: a chunk, the surface spoken in it, and the hard
    negatives of the whole batch, all fresh from their towers in this step, so gradients flow into both. `against`[B, M]
    is true where a negative is one of the chunk's. 0 where no chunk has one. The mean over negatives, where a triplet
    loss takes the worst: what was mined before an epoch is no longer the worst after it. After Schroff et al. (2015),
    "FaceNet: a unified embedding for face recognition and clustering", https://arxiv.org/abs/1503.03832.

    >>> loss = HardNegativeMarginLoss(margin=0.1)
    >>> loss(audio, own, negatives, against)  # a scalar
    """

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(
        self, audio: torch.Tensor, own: torch.Tensor, negatives: torch.Tensor, against: torch.Tensor
    ) -> torch.Tensor:
        own_scores = (audio * own).sum(dim=1, keepdim=True)  # [B, 1]
        short = torch.relu(self.margin - own_scores + audio @ negatives.T) * against  # [B, M]
        counts = against.sum(dim=1)
        return (short.sum(dim=1) / counts.clamp_min(1)).sum() / (counts > 0).sum().clamp_min(1)
