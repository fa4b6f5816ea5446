"""The first part of the audio route with Whisper: raw speech in, the frozen encoder's frames out."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.retrieval.encoders import FrozenEncoder
from earmark.retrieval.whisper import encode_frames, load_encoder, resolve_layer
from earmark.whisper import log_mel


class WhisperFrames(FrozenEncoder):
    """Frames as wide as the encoder's states, each the mean of two; `layer` is how many of its layers are run."""

    config_keys = ["encoder_config", "layer"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, encoder_config: dict[str, Any], layer: int, encoder: WhisperEncoder | None = None):
        super().__init__(encoder if encoder is not None else WhisperEncoder(WhisperConfig(**encoder_config)))
        self.layer = layer
        self.name = f"{layer} of {self.encoder.config.encoder_layers} layers of Whisper's encoder"

    @classmethod
    def of(cls, encoder: WhisperEncoder, layer: int) -> Self:
        """Wrap a loaded encoder."""
        return cls({}, layer, encoder)

    @classmethod
    def pretrained(cls, source: str, seed: int, layer: int) -> Self:
        """As `whisper.load_encoder` and `whisper.resolve_layer` say."""
        encoder = load_encoder(source, seed)
        return cls.of(encoder, resolve_layer(layer, encoder.config.encoder_layers))

    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        for clip in clips:
            self.check_clip(clip)
        return log_mel(self.extractor, clips)

    def encode_mel(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return encode_frames(self.encoder, mel, lengths, self.layer)
