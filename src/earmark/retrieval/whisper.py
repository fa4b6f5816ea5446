"""Which Whisper encoder is listened with, through how many of its layers, and the frames that its states make."""

from __future__ import annotations

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.errors import ConfigError, first_line
from earmark.whisper import BUNDLED, encode_states, load_model

STATES_PER_FRAME = 2  # a frame is the mean of two states: half the cache, half the training time


def load_encoder(source: str, seed: int) -> WhisperEncoder:
    """Load a Whisper encoder: float32, frozen, in evaluation mode.

    `source` is one of `whisper.load_model`, or `random:` + any of their models (same architecture, weights drawn from
    `seed`: the control that shows what the pretraining is worth). ConfigError if it cannot be loaded, or if the
    checkpoint lacks a weight.
    """
    kind, _, name = source.partition(":")
    if kind == "random":
        config = load_model(f"bundled:{name}").config if name == BUNDLED else _pretrained_config(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = WhisperEncoder(config)
    else:
        encoder = load_model(source).encoder
    return encoder.float().requires_grad_(False).eval()


def _pretrained_config(source: str) -> WhisperConfig:
    try:
        return WhisperConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ConfigError(f"{source}: no Whisper configuration could be loaded ({reason})") from None


def frame_count(states: torch.Tensor) -> torch.Tensor:
    """Frames (40 ms each) that so many states make; the last one may hold one state only."""
    return (states + STATES_PER_FRAME - 1) // STATES_PER_FRAME


def resolve_layer(layer: int, layers: int) -> int:
    """How many of an encoder's `layers` to run: `layer` itself, or counted from the end (-1 is all of them)."""
    resolved = layers + 1 + layer if layer < 0 else layer
    if not 1 <= resolved <= layers:
        raise ConfigError(f"the encoder has {layers} layers; layer {layer} is none of 1..{layers} or -1..-{layers}")
    return resolved


def encode_frames(
    encoder: WhisperEncoder, mel: torch.Tensor, lengths: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`encode_states`, then means of two neighbours: frames[B, F, dim] (40 ms each) and each clip's frames[B]."""
    return frames_of(encode_states(encoder, mel, lengths, layer), lengths)


def frames_of(states: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of two neighbours among states[B, T, dim], of which lengths[B] are real, as `encode_frames` gives them."""
    states = nn.functional.pad(states, (0, 0, 0, states.shape[1] % STATES_PER_FRAME))
    sums = states.unflatten(1, (-1, STATES_PER_FRAME)).sum(dim=2)
    starts = torch.arange(0, states.shape[1], STATES_PER_FRAME, device=states.device)
    members = (lengths.to(states.device)[:, None] - starts).clamp(1, STATES_PER_FRAME)  # of each frame, [B, F]
    return sums / members[:, :, None], frame_count(lengths)
