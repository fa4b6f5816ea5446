"""Whisper's encoder as a part of the model: frozen or trained, on the CPU or where the rest is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.whisper import encode_states


class ClipEncoder(nn.Module):
    """A Whisper encoder whose clips see neither padding nor their batch mates.

    Frozen, it stays in evaluation mode and gives states without gradients. With `keep_on_cpu` it ignores every move to
    another device or type and takes its input to where it is.
    """

    def __init__(self, encoder: WhisperEncoder, *, frozen: bool, keep_on_cpu: bool = False):
        super().__init__()
        self.encoder, self.frozen, self.keep_on_cpu = encoder, frozen, keep_on_cpu
        # Positions are a table that Whisper does not train.
        encoder.requires_grad_(not frozen)
        encoder.embed_positions.requires_grad_(False)
        self.train(not frozen)

    @property
    def dim(self) -> int:
        return int(self.encoder.config.d_model)

    @property
    def max_states(self) -> int:
        return int(self.encoder.config.max_source_positions)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        return self if self.keep_on_cpu else super()._apply(fn, recurse)

    def forward(self, mel: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """states[B, T, dim] of what `log_mel` gave, zero beyond a clip's end, where the encoder is."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return encode_states(self.encoder, mel, states)
