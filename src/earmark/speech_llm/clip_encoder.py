"""Whisper's encoder on clips at their true length.

`transformers` pads each clip to 30 s, which is 14 to 43 times the needed work for clips of one to three seconds, and
fills the language model's context with silence. Here a clip keeps its own states only. Whisper attends to its padding,
so the states are not those of padded clips: training and inference both come through this module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.audio import SAMPLE_RATE
from earmark.errors import AudioError

HOP_SAMPLES = 160  # of one mel frame
STATE_SAMPLES = 2 * HOP_SAMPLES  # of one encoder state, 20 ms: conv2 has stride 2
# Mel frames beyond the last state: two that the convolutions see, two that keep the STFT's mirrored edge away.
_RIGHT_CONTEXT = 4


def state_count(samples: int) -> int:
    """States (20 ms each) of a clip of that many samples; the last may be partly filled."""
    return -(-samples // STATE_SAMPLES)


def log_mel(extractor: WhisperFeatureExtractor, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """mel[B, bins, 2 * T + 4] of clips (float32 mono at 16 kHz), T being the longest's states; and states[B] of each.

    Beyond a clip's end is digital silence, as Whisper expects.
    """
    states = torch.tensor([state_count(clip.size) for clip in clips])
    mel_frames = 2 * int(states.max()) + _RIGHT_CONTEXT
    features = extractor(
        clips,
        sampling_rate=SAMPLE_RATE,
        padding="max_length",
        max_length=mel_frames * HOP_SAMPLES,
        return_tensors="pt",
    )
    return features["input_features"], states


def check_clip(clip: np.ndarray, path: Path, max_states: int) -> np.ndarray:
    """The clip. AudioError if it is not finite, or longer than the encoder's window of `max_states`."""
    if not np.isfinite(clip).all():
        raise AudioError(f"{path}: holds NaN or infinity; make the file again, or leave it out")
    if state_count(clip.size) > max_states:
        raise AudioError(
            f"{path}: {clip.size / SAMPLE_RATE:.1f} s is longer than the encoder's "
            f"{max_states * STATE_SAMPLES / SAMPLE_RATE:.0f} s; cut it into shorter clips"
        )
    return clip


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
            return self._encode(mel, states)

    def _encode(self, mel: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        mel = mel.to(encoder.conv1.weight.device, encoder.conv1.weight.dtype)
        stem = nn.functional.gelu(encoder.conv1(mel))
        stem = nn.functional.gelu(encoder.conv2(stem)).transpose(1, 2)
        longest = int(states.max())
        hidden = stem[:, :longest] + encoder.embed_positions.weight[:longest]
        hidden = nn.functional.dropout(hidden, encoder.dropout, self.training)
        real = torch.arange(longest, device=mel.device) < states.to(mel.device)[:, None]  # [B, T]
        mask = None if real.all() else real[:, None, None, :].expand(-1, 1, longest, -1)
        for layer in encoder.layers:
            output = layer(hidden, mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return encoder.layer_norm(hidden) * real[:, :, None]
