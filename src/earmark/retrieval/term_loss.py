"""Audio against glossary terms: which of them was spoken, if any."""

from __future__ import annotations

import math

import torch
from torch import nn

from earmark.errors import EarmarkError
from earmark.retrieval.temperature import Temperature

SPOKEN, NOT_SPOKEN, IGNORED = 1, 0, -1


class TermLoss(nn.Module):
    """InfoNCE between chunks and surfaces, both ways, with a learned "no term" alternative.

    scores[B, N] say how well a chunk and a surface fit; targets[B, N] say SPOKEN, NOT_SPOKEN or IGNORED (a further
    surface of a term that is spoken, a further term of the chunk, or what sounds alike: neither right nor wrong). A
    chunk chooses among its surface, those not spoken, and no term, which is what a no-term chunk should choose. That
    last logit is one learned number, so scores are pressed below (or above) one threshold for all chunks: rejection is
    a threshold on the best score. A surface chooses among the chunks.

    Raises ValueError if a batch has no chunk with a term. After van den Oord et al. (2018), "Representation learning
    with contrastive predictive coding", https://arxiv.org/abs/1807.03748.

    >>> loss = TermLoss(temperature=0.07, no_term_score=0.3)
    >>> loss(audio @ surfaces.T, targets)  # a scalar
    """

    def __init__(self, temperature: float | Temperature, no_term_score: float):
        super().__init__()
        self.temperature = Temperature.of(temperature)
        self.no_term_score = nn.Parameter(torch.tensor(no_term_score))

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        temperature = self.temperature()
        logits = scores / temperature  # [B, N]
        spoken, ignored = targets == SPOKEN, targets == IGNORED
        has_term = spoken.any(dim=1)
        no_term = (self.no_term_score / temperature).expand(len(scores), 1)
        choices = torch.cat([logits.masked_fill(ignored, -math.inf), no_term], dim=1)
        chosen = torch.cat([spoken, ~has_term[:, None]], dim=1)
        by_chunk = _negative_log_share(choices, chosen)
        heard = spoken.any(dim=0)
        by_surface = _negative_log_share(logits.masked_fill(ignored, -math.inf).T[heard], spoken.T[heard])
        return (by_chunk.mean() + by_surface.mean()) / 2 if heard.any() else by_chunk.mean()


def _negative_log_share(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """-log of the softmax mass on each row's chosen entries, [rows]."""
    return logits.logsumexp(dim=1) - logits.masked_fill(~chosen, -math.inf).logsumexp(dim=1)


def finite(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of a loss as they are; EarmarkError if one is not finite."""
    for name, value in parts.items():
        if not torch.isfinite(value):
            raise EarmarkError(f"training broke off: {name} is {value.item()}; lower the learning rate")
    return parts
