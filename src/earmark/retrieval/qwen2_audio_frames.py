"""The first part of the audio route with Qwen2-Audio: raw speech in, frames of its frozen audio tower out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig

from earmark.qwen2_audio import check_audio, encode_tower, log_mel
from earmark.retrieval.encoders import FrozenEncoder
from earmark.retrieval.qwen2_audio import load_audio_tower


class Qwen2AudioTowerFrames(FrozenEncoder):
    """Frames of the audio tower, after its pooling and layer norm: 1,280 numbers for the 7B model.

    Not the projector's 4,096: those are a linear map of these, so they hold no more, a trained head maps frames anyway,
    and they would take 3.2 times the cache. The tower is saved whole, in bfloat16 (1.3 GB for the 7B model, which is
    16 GB): a retriever needs nothing but its folder, wherever that is copied to. It computes in bfloat16 on a GPU, in
    float32 on a CPU.
    """

    name = "Qwen2-Audio's audio tower"
    config_keys = ["encoder_config"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, encoder_config: dict[str, Any], encoder: Qwen2AudioEncoder | None = None):
        super().__init__(encoder if encoder is not None else _unfilled_tower(encoder_config))

    @classmethod
    def pretrained(cls, source: str, seed: int) -> Self:
        """As `load_audio_tower` says."""
        return cls({}, load_audio_tower(source, seed))

    def check_clip(self, clip: np.ndarray) -> None:
        check_audio(clip, self.max_states)

    def log_mel(self, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        return log_mel(self.extractor, clips, self.max_states)

    def encode_mel(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        device = self.encoder.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            frames, counts = encode_tower(self.encoder, mel, lengths)
        return frames.float(), counts

    def save_torch_weights(self, output_path: str, safe_serialization: bool = True) -> None:
        """Write the tower in bfloat16, to which `load_audio_tower` rounded it: nothing is lost."""
        weights = {name: weight.to("cpu", torch.bfloat16) for name, weight in self.state_dict().items()}
        save_file(weights, Path(output_path, "model.safetensors"))


def _unfilled_tower(encoder_config: dict[str, Any]) -> Qwen2AudioEncoder:
    """A tower whose weights are still to be loaded; drawing 637 million random ones first would take seconds."""
    with torch.device("meta"):
        tower = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**encoder_config))
    return tower.to_empty(device="cpu")
