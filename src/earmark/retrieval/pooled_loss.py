"""The objective of a pooled retriever: terms and words, weighted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from earmark.retrieval.term_loss import TermLoss, finite
from earmark.retrieval.word_loss import WordLoss


class PooledLoss(nn.Module):
    """`term_weight` * TermLoss + `text_weight` * WordLoss of one collated batch (see `pooled_batches`).

    Returns the weighted parts by name; the trainer sums and logs them. EarmarkError if one is not finite.
    """

    def __init__(self, model: nn.Module, term_weight: float, text_weight: float, temperature: float):
        super().__init__()
        self.model = model
        self.term_weight, self.text_weight = term_weight, text_weight
        self.term_loss = TermLoss(temperature, no_term_score=0.3)  # a cosine
        self.word_loss = WordLoss(temperature)

    def forward(self, features: list[dict[str, Any]], labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        audio, surfaces, phrases = (self.model(part)["sentence_embedding"] for part in features)
        parts = {
            "term_loss": self.term_weight * self.term_loss(audio @ surfaces.T, labels["terms"]),
            "text_loss": self.text_weight * self.word_loss(audio, phrases, labels["phrases"]),
        }
        return finite(parts)
