"""A chunk without a term stays below the threshold by a margin, not by a hair."""

from __future__ import annotations

import torch
from torch import nn

from earmark.retrieval.term_loss import IGNORED, SPOKEN


class NoTermMarginLoss(nn.Module):
    """max(0, best score - (no_term_score - margin)), mean over the chunks in which no term is spoken; 0 if none is.

    scores[B, N] say how well a chunk and a surface fit; targets[B, N] are those of `TermLoss`, `no_term_score` its
    learned threshold, which is not moved from here: it would only flee upwards. TermLoss compares the best term with
    "no term" by their share of a softmax and is content when that is large; the hinge looks at the one score that
    rejection looks at, the best, and is content when its distance from the threshold is `margin`. What is ignored is
    not looked at. After Weston and Watkins (1999), "Support vector machines for multi-class pattern recognition".

    >>> loss = NoTermMarginLoss(margin=0.15)
    >>> loss(audio @ surfaces.T, targets, term_loss.no_term_score)  # a scalar
    """

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def forward(self, scores: torch.Tensor, targets: torch.Tensor, no_term_score: torch.Tensor) -> torch.Tensor:
        without = (targets != SPOKEN).all(dim=1)
        best = scores.masked_fill(targets == IGNORED, -torch.inf)[without].amax(dim=1)
        return torch.relu(best - (no_term_score.detach() - self.margin)).sum() / without.sum().clamp_min(1)
