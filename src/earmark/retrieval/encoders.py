"""The frozen encoders that an audio route may begin with: what they have in common, and which one a `source` names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import soxr
import torch
from sentence_transformers.base.modality_types import Modality
from sentence_transformers.base.modules import InputModule
from sentence_transformers.util import batch_to_device
from transformers import PreTrainedConfig, PreTrainedModel, WhisperFeatureExtractor

from earmark.audio import SAMPLE_RATE, read_audio
from earmark.errors import AudioError, ConfigError, first_line
from earmark.retrieval.module_files import SavedModule
from earmark.whisper import BUNDLED, check_clip

# What shapes an encoder, of all that a configuration holds.
_SHAPE = (
    "num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "activation_function",
    "max_source_positions", "scale_embedding",
)  # fmt: skip


class FrozenEncoder(SavedModule, InputModule):
    """Turns audio into frames[B, T, frame_dim] (40 ms each, zero beyond a clip's end) and `frame_lengths`[B].

    Encoding the chunks once (`encode`) and the saved model's audio route run the same code. Batches that already hold
    `frames`, because they were encoded once and cached, pass through unchanged: training does not run the encoder. A
    kind of encoder says how clips become a log-mel spectrogram, and that becomes frames.
    """

    name: str  # for the log

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.encoder_config = {key: getattr(encoder.config, key) for key in _SHAPE}
        self.extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)

    @abstractmethod
    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """mel[B, bins, M] of clips that `check_clip` lets pass, and lengths[B] as `encode_mel` wants them."""

    @abstractmethod
    def encode_mel(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames[B, T, frame_dim], float32, and each clip's frames[B]."""

    @property
    def frame_dim(self) -> int:
        """How wide a frame is."""
        return int(self.encoder_config["d_model"])

    @property
    def max_states(self) -> int:
        """The longest clip, in states of 20 ms."""
        return int(self.encoder_config["max_source_positions"])

    @property
    def modalities(self) -> list[Modality]:
        return ["audio"]

    def train(self, mode: bool = True) -> Self:
        """The encoder stays in evaluation mode: it is frozen."""
        super().train(mode)
        self.encoder.eval()
        return self

    def check_clip(self, clip: np.ndarray) -> None:
        """AudioError if a clip (mono at 16 kHz) is empty, not finite, or of a length that cannot be encoded."""
        check_clip(clip, self.max_states)

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """frames[n, frame_dim], float32, of each clip, in one batch: clips of like length hold the least padding.

        AudioError as `check_clip`.
        """
        with torch.inference_mode():
            encoded = self(batch_to_device(self.preprocess(clips), self.encoder.device))
        frames = encoded["frames"].cpu().numpy()
        return [clip[:count] for clip, count in zip(frames, encoded["frame_lengths"].tolist(), strict=True)]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs`: float arrays[n] at 16 kHz, {"array", "sampling_rate"}, or paths of audio files."""
        mel, lengths = self.log_mel([samples_of(item) for item in inputs])
        return {"input_features": mel, "input_lengths": lengths}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "frames" not in features:
            with torch.no_grad():
                features["frames"], features["frame_lengths"] = self.encode_mel(
                    features["input_features"], features["input_lengths"]
                )
        return features


def load_frozen_encoder(source: str, seed: int, layer: int = -1) -> FrozenEncoder:
    """Load the encoder that `source` names, in float32 on the CPU.

    `source` is a folder or hub id of a Whisper or of a Qwen2-Audio, whose frozen audio tower is taken (its own
    `config.json` says which it is); `bundled:whisper-tiny.en`; or `random:` + one of these, `bundled:` left out: the
    same shape, weights drawn from `seed`. `layer` is how many of Whisper's layers are run, counted from the last if
    negative; Qwen2-Audio's are all run (-1). ConfigError if there is no such encoder or layer, or weights are missing.
    """
    # Only what is asked for is imported, and each kind's module imports this one.
    match model_type(source):
        case "whisper":
            from earmark.retrieval.whisper_frames import WhisperFrames

            return WhisperFrames.pretrained(source, seed, layer)
        case "qwen2_audio":
            from earmark.retrieval.qwen2_audio_frames import Qwen2AudioTowerFrames

            if layer != -1:
                raise ConfigError(
                    f"{source}: of Qwen2-Audio's audio tower all layers are run; set retrieval.layer to -1, not {layer}"
                )
            return Qwen2AudioTowerFrames.pretrained(source, seed)
        case other:
            raise ConfigError(
                f"{source}: a model of type {other!r}; the encoder may be a Whisper (whisper) or a Qwen2-Audio "
                "(qwen2_audio)"
            )


def model_type(source: str) -> str | None:
    """The `model_type` in the configuration of the model that `source` names; no code of a model folder is run."""
    name = source.removeprefix("random:")
    if name == BUNDLED or name.startswith("bundled:"):
        return "whisper"
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"{name}: no model's config.json could be loaded ({reason}). Give a folder or hub id of a Whisper or a "
            f"Qwen2-Audio, or bundled:{BUNDLED}, which needs no network"
        ) from None
    return config.get("model_type")


def samples_of(item: Any) -> np.ndarray:
    """One input of a model as float32 mono samples at 16 kHz. AudioError if it is something else."""
    if isinstance(item, str):
        return read_audio(Path(item))
    rate = SAMPLE_RATE
    if isinstance(item, dict):
        if "audio" in item:
            return samples_of(item["audio"])
        item, rate = item["array"], int(item["sampling_rate"])
    samples = np.asarray(item)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise AudioError(
            f"audio of shape {samples.shape} and type {samples.dtype}: give mono samples[n] as floats in [-1, 1]"
        )
    samples = samples.astype(np.float32)
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
