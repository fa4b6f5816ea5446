"""The second half of the audio route: the encoder's frames in, one vector out. This part is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from earmark.retrieval.module_files import SavedModule


class AudioHead(SavedModule):
    """Pools frames[B, T, frame_dim] into `sentence_embedding`[B, embedding_dim] (not normalised).

    A term fills a third of a chunk with a second of context on either side; a mean would dilute it. So a few
    learned queries each take a softmax over the chunk's real frames, after a light temporal model (depthwise
    convolutions) that lets a frame see its neighbours. Without `queries` it is the mean of the real frames after all.
    """

    config_keys = [  # noqa: RUF012 (the base class's protocol)
        "frame_dim", "hidden_dim", "embedding_dim", "queries", "blocks", "kernel_size", "dropout",
    ]  # fmt: skip

    def __init__(
        self,
        frame_dim: int,
        hidden_dim: int,
        embedding_dim: int,
        queries: int,
        blocks: int,
        kernel_size: int,
        dropout: float,
    ):
        super().__init__()
        self.frame_dim, self.hidden_dim, self.embedding_dim = frame_dim, hidden_dim, embedding_dim
        self.queries, self.blocks, self.kernel_size, self.dropout = queries, blocks, kernel_size, dropout
        self.input = nn.Sequential(nn.LayerNorm(frame_dim), nn.Linear(frame_dim, hidden_dim))
        self.temporal = nn.ModuleList(ConvBlock(hidden_dim, kernel_size, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(hidden_dim)
        self.scores = nn.Linear(hidden_dim, queries) if queries else None
        self.values = nn.Linear(hidden_dim, hidden_dim)
        self.output = nn.Linear(max(1, queries) * hidden_dim, embedding_dim)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        hidden, real = through_blocks(self.temporal, self.input(features["frames"]), features["frame_lengths"])
        hidden = self.norm(hidden)
        scores = hidden.new_zeros(*hidden.shape[:2], 1) if self.scores is None else self.scores(hidden)
        weights = scores.masked_fill(~real[:, :, None], -torch.inf).softmax(dim=1)  # [B, T, Q]
        pooled = torch.einsum("btq,bth->bqh", weights, self.values(hidden)).flatten(1)
        features["sentence_embedding"] = self.output(nn.functional.dropout(pooled, self.dropout, self.training))
        return features

    def get_embedding_dimension(self) -> int:
        return self.embedding_dim


def through_blocks(
    blocks: nn.ModuleList, hidden: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden[B, T, dim] after the `ConvBlock`s, and which frames are real[B, T], by the clips' lengths[B]."""
    real = torch.arange(hidden.shape[1], device=hidden.device) < lengths.to(hidden.device)[:, None]
    for block in blocks:
        hidden = block(hidden, real)
    return hidden, real


class ConvBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise feed-forward, both residual."""

    def __init__(self, dim: int, kernel_size: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim)
        )

    def forward(self, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        # Padding is zeroed after the norm: a clip's last frames see the zeros that the convolution itself pads with.
        neighbours = self.depthwise((self.norm(hidden) * real[:, :, None]).transpose(1, 2))
        hidden = hidden + neighbours.transpose(1, 2)
        return hidden + self.feed_forward(hidden)
