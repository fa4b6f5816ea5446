"""The objective of an alignment retriever: what the transcript says, and which terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from earmark.retrieval.processes import Processes
from earmark.retrieval.term_alignment import alignment_scores, emissions
from earmark.retrieval.term_loss import TermLoss, finite


class AlignmentLoss(nn.Module):
    """`text_weight` * CTC + `term_weight` * TermLoss of one collated batch (see `alignment_batches`).

    CTC: the negative log-probability of a chunk's transcript in units, per unit (Graves et al. 2006, "Connectionist
    temporal classification", https://doi.org/10.1145/1143844.1143891). TermLoss is over alignment scores, so its
    gradient flows through the best path of each term to the frames. Returns the weighted parts by name. EarmarkError if
    one is not finite.
    """

    def __init__(self, model: nn.Module, text_weight: float, term_weight: float, temperature: float):
        super().__init__()
        self.model = model
        self.text_weight, self.term_weight = text_weight, term_weight
        # Eight: about three units of bonus. It is learned.
        self.term_loss = TermLoss(temperature, no_term_score=8.0) if term_weight else None
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
        """The loss of `model`, which each of `processes` runs on its share of the chunks."""
        chunks = len(labels["said"])
        heard = model(processes.share(features[0]))
        log_probs, lengths = heard["unit_log_probs"], heard["frame_lengths"]
        said, counts = processes.share(labels["said"]), processes.share(labels["said_counts"])
        text_losses = nn.functional.ctc_loss(log_probs.transpose(0, 1), said, lengths, counts, reduction="none")
        text_loss = processes.gathered(text_losses / counts, chunks).mean()
        parts = {"text_loss": self.text_weight * text_loss}
        if self.term_loss is not None:
            scores = alignment_scores(emissions(log_probs, lengths), labels["units"], labels["unit_counts"])
            parts["term_loss"] = self.term_weight * self.term_loss(processes.gathered(scores, chunks), labels["terms"])
        return finite(parts)
