"""What each architecture hears of a clip: its log-mel spectrogram at its true length, and how many tokens it becomes.

A clip's length is counted in encoder states of 20 ms, which both encoders make of two mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from earmark import qwen2_audio, whisper


class ClipFeatures(Protocol):
    """How a model hears. `max_states` is the longest clip that its encoder takes."""

    @property
    def max_states(self) -> int: ...

    def audio_tokens(self, states: int) -> int:
        """Audio tokens of a clip of so many states; 0 where it is too short for one."""

    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """mel[B, bins, M] and states[B] of float32 mono clips at 16 kHz."""


@dataclass(frozen=True)
class WhisperClips:
    """Whisper's states, `stack` of which make a token; the last token may be partly filled, with zeros."""

    mel_bins: int
    max_states: int
    stack: int

    def audio_tokens(self, states: int) -> int:
        return -(-states // self.stack)

    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        return whisper.log_mel(self._extractor, clips)

    @cached_property
    def _extractor(self) -> WhisperFeatureExtractor:
        return WhisperFeatureExtractor(feature_size=self.mel_bins)


@dataclass(frozen=True)
class Qwen2AudioClips:
    """Qwen2-Audio's states, two of which make a token; a last one without a neighbour is dropped."""

    mel_bins: int
    max_states: int

    def audio_tokens(self, states: int) -> int:
        return states // 2

    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        mel, frames = qwen2_audio.log_mel(self._extractor, clips, self.max_states)
        return mel, (frames + 1) // 2

    @cached_property
    def _extractor(self) -> WhisperFeatureExtractor:
        return WhisperFeatureExtractor(feature_size=self.mel_bins)
