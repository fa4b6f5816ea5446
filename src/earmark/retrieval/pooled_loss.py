"""The training objective: terms and words, weighted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from earmark.errors import EarmarkError
from earmark.retrieval.term_loss import TermLoss
from earmark.retrieval.word_loss import WordLoss


class RetrieverLoss(nn.Module):
    """`term_weight` * TermLoss + `word_weight` * WordLoss of one collated batch (see `training_batches`).

    Returns the weighted parts by name; the trainer sums and logs them. EarmarkError if one is not finite.
    """

    def __init__(self, model: nn.Module, term_weight: float, word_weight: float, temperature: float):
        super().__init__()
        self.model = model
        self.term_weight, self.word_weight = term_weight, word_weight
        self.term_loss = TermLoss(temperature)
        self.word_loss = WordLoss(temperature)

    def forward(self, features: list[dict[str, Any]], labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        audio, surfaces, phrases = (self.model(part)["sentence_embedding"] for part in features)
        parts = {
            "term_loss": self.term_weight * self.term_loss(audio, surfaces, labels["terms"]),
            "word_loss": self.word_weight * self.word_loss(audio, phrases, labels["phrases"]),
        }
        for name, value in parts.items():
            if not torch.isfinite(value):
                raise EarmarkError(f"training broke off: {name} is {value.item()}; lower the learning rate")
        return parts
