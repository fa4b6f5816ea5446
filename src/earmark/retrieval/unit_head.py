"""The second part of the audio route of an alignment retriever: frames in, units per frame out. Trained."""

from __future__ import annotations

from typing import Any

from sentence_transformers.base.modules import Module
from torch import nn

from earmark.retrieval.audio_head import ConvBlock, through_blocks
from earmark.retrieval.module_files import SavedModule


class UnitHead(SavedModule, Module):
    """frames[B, T, frame_dim] -> `unit_log_probs`[B, T, units + 1] over the units that are spoken; 0 is the blank.

    Trained on transcripts alone (connectionist temporal classification), so every spoken word teaches it, and a term
    that training never heard is heard by its units.
    """

    config_keys = ["frame_dim", "hidden_dim", "units", "blocks", "kernel_size", "dropout"]  # noqa: RUF012

    def __init__(self, frame_dim: int, hidden_dim: int, units: int, blocks: int, kernel_size: int, dropout: float):
        super().__init__()
        self.frame_dim, self.hidden_dim, self.units = frame_dim, hidden_dim, units
        self.blocks, self.kernel_size, self.dropout = blocks, kernel_size, dropout
        self.input = nn.Sequential(nn.LayerNorm(frame_dim), nn.Dropout(dropout), nn.Linear(frame_dim, hidden_dim))
        self.temporal = nn.ModuleList(ConvBlock(hidden_dim, kernel_size, dropout) for _ in range(blocks))
        self.output = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Dropout(dropout), nn.Linear(hidden_dim, units + 1))

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        hidden, _real = through_blocks(self.temporal, self.input(features["frames"]), features["frame_lengths"])
        features["unit_log_probs"] = self.output(hidden).log_softmax(dim=-1)
        return features
