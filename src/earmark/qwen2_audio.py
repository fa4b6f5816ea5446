"""Reading Qwen2-Audio checkpoints, and running the audio tower on clips at their true length.

`transformers` pads every clip to 30 s and refuses anything else. Qwen2-Audio's encoder masks that padding, so leaving
it out changes nothing: here a clip keeps its own frames, plus the silence that the convolutions see beyond its end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioEncoder,
    WhisperFeatureExtractor,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging

from earmark.audio import SAMPLE_RATE
from earmark.errors import AudioError, ConfigError, first_line
from earmark.whisper import HOP_SAMPLES, STATE_SAMPLES, check_clip, padded_mel

RANDOM = "random:"
# Mel frames beyond the last encoder state: one that conv1 sees, one that keeps the STFT's mirrored edge off it.
_RIGHT_CONTEXT = 2


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that `source` names, padding on the right. ConfigError if there is none."""
    name = base_name(source)
    try:
        return AutoTokenizer.from_pretrained(name, padding_side="right")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: no tokenizer could be loaded ({first_line(error)})") from None


def base_name(source: str) -> str:
    """The folder or hub id in `source`, without `random:`."""
    return source.removeprefix(RANDOM)


def load_config(name: str) -> Qwen2AudioConfig:
    """The configuration in a folder or hub id. ConfigError if there is none, or one of another kind of model."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: no Qwen2-Audio configuration could be loaded ({first_line(error)}). Give a hub id or a folder"
        ) from None
    if not isinstance(config, Qwen2AudioConfig):
        raise ConfigError(f"{name}: a model of type {config.model_type!r}, not qwen2_audio")
    return config


def load_pretrained(kind: Any, name: str, dtype: torch.dtype, *, unused: tuple[str, ...] = (), **options: Any) -> Any:
    """The `kind` of model in a checkpoint. ConfigError if it cannot be read, or lacks a weight or its shape.

    Weights whose names begin with one of `unused` may be missing.
    """
    # Its report would warn of all that is not wanted here; what matters in it is checked below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{name}: no Qwen2-Audio weights could be loaded ({first_line(error)}). Give a complete folder or a hub id"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(key for key in map(str, info["missing_keys"]) if not key.startswith(unused))
    if missing:
        raise ConfigError(f"{name}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if mismatched:
        raise ConfigError(
            f"{name}: {len(mismatched)} weights do not have the shape that config.json gives, such as {mismatched[0]}"
        )
    return model


def check_audio(clip: np.ndarray, max_states: int) -> None:
    """AudioError as `whisper.check_clip` says, or if a clip is too short to give one frame."""
    check_clip(clip, max_states)
    if clip.size <= STATE_SAMPLES:
        raise AudioError(f"a clip of {clip.size / SAMPLE_RATE:.3f} s is too short for one frame (40 ms)")


def log_mel(
    extractor: WhisperFeatureExtractor, clips: list[np.ndarray], max_states: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel spectrogram of clips at their true length: mel[B, bins, M], and each clip's own mel frames[B] (10 ms).

    `clips` are float32 mono at 16 kHz; `max_states` is the tower's `max_source_positions`. Beyond a clip's end is
    digital silence, as in the padded original. AudioError as `check_audio` says.
    """
    for clip in clips:
        check_audio(clip, max_states)
    lengths = torch.tensor([-(-clip.size // HOP_SAMPLES) for clip in clips])
    longest = int(lengths.max())
    # Near 30 s there is no room for the context: the original sees its own edge there, and so must we.
    mel_frames = min(longest + longest % 2 + _RIGHT_CONTEXT, 2 * max_states)
    return padded_mel(extractor, clips, mel_frames), lengths


def encode_tower(
    tower: Qwen2AudioEncoder, mel: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The audio tower's frames[B, T, dim] (40 ms each, zero beyond a clip's end), and counts[B] of them.

    `mel` and `lengths` come from `log_mel`. Equal to `transformers`' padded forward at the real positions, however
    clips are batched. Frames are on the tower's device and of its type, counts where `lengths` is.
    """
    states, counts = tower._get_feat_extract_output_lengths(lengths)  # type: ignore[arg-type]  # any integers
    mel = mel.to(tower.conv1.weight.device, tower.conv1.weight.dtype)
    stem = nn.functional.gelu(tower.conv1(mel))
    stem = nn.functional.gelu(tower.conv2(stem)).transpose(1, 2)
    longest = int(states.max())
    hidden = stem[:, :longest] + tower.embed_positions.weight[:longest]
    mask = create_bidirectional_mask(
        config=tower.config, inputs_embeds=hidden, attention_mask=real_positions(states, longest, hidden.device).long()
    )
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    frames = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))
    return frames * real_positions(counts, frames.shape[1], frames.device)[:, :, None], counts


def real_positions(counts: torch.Tensor, longest: int, device: torch.device) -> torch.Tensor:
    """True at real positions[B, longest]."""
    return torch.arange(longest, device=device) < counts.to(device)[:, None]
