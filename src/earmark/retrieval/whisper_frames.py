"""The first half of the audio route: raw speech in, the frozen encoder's frames out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import soxr
import torch
from sentence_transformers.base.modality_types import Modality
from sentence_transformers.base.modules import InputModule
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.audio import SAMPLE_RATE, read_audio
from earmark.errors import AudioError
from earmark.retrieval.module_files import SavedModule
from earmark.retrieval.whisper import encode_frames, log_mel


class WhisperFrames(SavedModule, InputModule):
    """Turns audio into frames[B, T, dim] of a frozen Whisper encoder (40 ms each) and `frame_lengths`[B].

    Batches that already hold `frames`, because they were encoded once and cached, pass through unchanged: training does
    not run the encoder. `layer` is how many of the encoder's layers are run.
    """

    config_keys = ["encoder_config", "layer"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, encoder_config: dict[str, Any], layer: int, encoder: WhisperEncoder | None = None):
        super().__init__()
        self.encoder_config = encoder_config
        self.layer = layer
        self.encoder = encoder if encoder is not None else WhisperEncoder(WhisperConfig(**encoder_config))
        self.encoder.requires_grad_(False).eval()
        self._extractor = WhisperFeatureExtractor(feature_size=self.encoder.config.num_mel_bins)

    @classmethod
    def of(cls, encoder: WhisperEncoder, layer: int) -> Self:
        """Wrap a loaded encoder; only the part of its configuration that shapes it is kept."""
        config = encoder.config
        keys = ("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
        shape = {key: getattr(config, key) for key in (*keys, "max_source_positions", "scale_embedding")}
        return cls(shape, layer, encoder)

    @property
    def modalities(self) -> list[Modality]:
        return ["audio"]

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation mode: it is frozen."""
        super().train(mode)
        self.encoder.eval()
        return self

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs`: float arrays[n] at 16 kHz, {"array", "sampling_rate"}, or paths of audio files."""
        clips = [_samples(item) for item in inputs]
        mel, lengths = log_mel(self._extractor, clips, self.encoder.config.max_source_positions)
        return {"input_features": mel, "state_lengths": lengths}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "frames" not in features:
            with torch.no_grad():
                features["frames"], features["frame_lengths"] = encode_frames(
                    self.encoder, features["input_features"], features["state_lengths"], self.layer
                )
        return features


def _samples(item: Any) -> np.ndarray:
    """One input as float32 mono samples at 16 kHz."""
    if isinstance(item, str):
        return read_audio(Path(item))
    rate = SAMPLE_RATE
    if isinstance(item, dict):
        if "audio" in item:
            return _samples(item["audio"])
        item, rate = item["array"], int(item["sampling_rate"])
    samples = np.asarray(item)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"audio of shape {samples.shape} and type {samples.dtype}: give mono samples[n] as floats in [-1, 1]"
        )
    samples = samples.astype(np.float32)
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
