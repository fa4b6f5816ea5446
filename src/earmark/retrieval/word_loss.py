"""Audio against everyday words: what teaches letters to sound beyond the terms that training has heard."""

from __future__ import annotations

import math

import torch
from torch import nn

from earmark.retrieval.temperature import Temperature
from earmark.retrieval.term_loss import NOT_SPOKEN, SPOKEN


class WordLoss(nn.Module):
    """Multi-positive InfoNCE between chunks and the words and short phrases spoken in them, both ways.

    audio[B, dim] and phrases[W, dim] are unit vectors; targets[B, W] say SPOKEN where the phrase is part of the chunk's
    transcript, IGNORED where it only sounds like one, else NOT_SPOKEN. Each spoken phrase competes with the phrases
    that are not spoken in the chunk, never with its companions, so a word that two chunks share is a positive of both
    and a negative of neither. Word by word, not transcript by transcript: a transcript's vector would say which
    sentence it was, not what any one word sounds like.
    """

    def __init__(self, temperature: float | Temperature):
        super().__init__()
        self.temperature = Temperature.of(temperature)

    def forward(self, audio: torch.Tensor, phrases: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = audio @ phrases.T / self.temperature()  # [B, W]
        return (_each_against_others(logits, targets) + _each_against_others(logits.T, targets.T)) / 2


def _each_against_others(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over spoken entries of -log(exp(entry) / (exp(entry) + sum of exp(not spoken in the row))); 0 if none is."""
    others = logits.masked_fill(targets != NOT_SPOKEN, -math.inf).logsumexp(dim=1, keepdim=True)
    losses = nn.functional.softplus(others - logits)[targets == SPOKEN]
    return losses.sum() / max(1, losses.numel())
