"""The objective of a pooled retriever: terms and words, and margins, weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from earmark.retrieval.hard_negative_loss import HardNegativeMarginLoss
from earmark.retrieval.no_term_loss import NoTermMarginLoss
from earmark.retrieval.processes import Processes
from earmark.retrieval.temperature import Temperature
from earmark.retrieval.term_loss import SPOKEN, TermLoss, finite
from earmark.retrieval.word_loss import WordLoss


@dataclass(frozen=True)
class Margin:
    """A margin between cosines, and what missing it weighs."""

    margin: float
    weight: float


class PooledLoss(nn.Module):
    """The weighted sum of TermLoss, WordLoss and, where they weigh something, two margin losses of one collated batch.

    `no_term`: see `NoTermMarginLoss`; None, or a weight of 0: not computed. `hard_negative`: see
    `HardNegativeMarginLoss`; computed where a batch has such negatives (see `pooled_batches`). `learn_temperature`: see
    `Temperature`; one for both. Returns the weighted parts by name; the trainer sums and logs them. EarmarkError if one
    is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        term_weight: float,
        text_weight: float,
        temperature: float,
        no_term: Margin | None = None,
        hard_negative: Margin | None = None,
        learn_temperature: bool = False,
    ):
        super().__init__()
        self.model = model
        self.term_weight, self.text_weight = term_weight, text_weight
        self.no_term, self.hard_negative = no_term, hard_negative
        shared = Temperature(temperature, learn_temperature)
        self.term_loss = TermLoss(shared, no_term_score=0.3)  # a cosine
        self.word_loss = WordLoss(shared)
        self.processes = Processes.joined()

    def forward(self, features: list[dict[str, Any]], labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.parts(self.model, features, labels, self.processes)

    def parts(
        self,
        model: nn.Module,
        features: list[dict[str, Any]],
        labels: dict[str, torch.Tensor],
        processes: Processes,
    ) -> dict[str, torch.Tensor]:
        """The loss of `model`, whose routes each of `processes` runs on its share of the chunks and of the texts."""
        heard, *texts = features
        audio = processes.gathered(model(processes.share(heard))["sentence_embedding"], len(labels["terms"]))
        targets_of_texts = (labels[name] for name in ("terms", "phrases", "against") if name in labels)  # [B, texts]
        surfaces, phrases, *negatives = (
            processes.gathered(model(processes.share(text))["sentence_embedding"], about.shape[1])
            for text, about in zip(texts, targets_of_texts, strict=True)
        )
        scores, targets = audio @ surfaces.T, labels["terms"]
        parts = {
            "term_loss": self.term_weight * self.term_loss(scores, targets),
            "text_loss": self.text_weight * self.word_loss(audio, phrases, labels["phrases"]),
        }
        if self.no_term is not None and self.no_term.weight:
            loss = NoTermMarginLoss(self.no_term.margin)(scores, targets, self.term_loss.no_term_score)
            parts["no_term_loss"] = self.no_term.weight * loss
        if self.hard_negative is not None:
            # Present in every step, 0 where a batch has none: the log's mean over steps is then one over all of them.
            loss = audio.new_zeros(())
            if negatives:
                own = surfaces[(targets == SPOKEN).int().argmax(dim=1)]  # the first where there is none: unused
                loss = HardNegativeMarginLoss(self.hard_negative.margin)(audio, own, negatives[0], labels["against"])
            parts["hard_negative_loss"] = self.hard_negative.weight * loss
        return finite(parts)
