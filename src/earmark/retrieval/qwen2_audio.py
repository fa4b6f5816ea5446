"""Loading Qwen2-Audio and running its parts on clips at their true length.

`transformers` pads every clip to 30 s and refuses anything else. Qwen2-Audio's encoder masks that padding, so leaving
it out changes nothing: here a clip keeps its own frames, plus the silence that the convolutions see beyond its end.

    log_mel -> encode_tower    -> frames of the audio tower, 40 ms each
               -> encode_audio -> the same, projected: as wide as the language model
                                  -> audio_states: what the language model makes of them
    term    -> tokens          -> text_states: the same language model over text
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
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
    Qwen2AudioModel,
    WhisperFeatureExtractor,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import logging

from earmark.audio import SAMPLE_RATE
from earmark.errors import AudioError, ConfigError
from earmark.whisper import HOP_SAMPLES, STATE_SAMPLES, check_clip, padded_mel

AUDIO_BEGIN = "<|audio_bos|>"
# Mel frames beyond the last encoder state: one that conv1 sees, one that keeps the STFT's mirrored edge off it.
_RIGHT_CONTEXT = 2
_RANDOM = "random:"


def load_qwen2_audio(
    source: str, seed: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Qwen2AudioModel:
    """Load audio tower, projector and language model (no output layer): frozen, in evaluation mode.

    `source` is a folder or hub id (`Qwen/Qwen2-Audio-7B-Instruct`), or `random:` + one: the same configuration, weights
    drawn from `seed` in float32 (34 GB for the 7B model), whatever `dtype` is. `device` is by default the GPU where
    there is one; `dtype` bfloat16 on a GPU, float32 on a CPU. ConfigError if there is no such model, or if the
    checkpoint lacks a weight or has one of another shape (which `transformers` would silently leave random).
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    name = base_name(source)
    config = _config(name)
    if source.startswith(_RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2AudioModel(config)
    else:
        model = _pretrained(Qwen2AudioModel, name, dtype)
    model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
    return model.requires_grad_(False).eval()


def load_audio_tower(source: str, seed: int) -> Qwen2AudioEncoder:
    """Load the audio tower alone, without projector and language model: frozen, in evaluation mode, on the CPU.

    `source` and errors are those of `load_qwen2_audio`. Weights are float32, but rounded to bfloat16, the type in which
    they are published and kept: a tower that was saved in it gives the frames of the tower that was saved.
    """
    name = base_name(source)
    config: Any = _config(name).audio_config
    if source.startswith(_RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = Qwen2AudioEncoder(config).bfloat16()
    else:
        prefix = {r"^(?:model\.)?audio_tower\.": ""}
        tower = _pretrained(Qwen2AudioEncoder, name, torch.bfloat16, config=config, key_mapping=prefix)
    return tower.float().requires_grad_(False).eval()


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that `source` names, padding on the right. ConfigError if there is none."""
    name = base_name(source)
    try:
        return AutoTokenizer.from_pretrained(name, padding_side="right")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: no tokenizer could be loaded ({_first_line(error)})") from None


def base_name(source: str) -> str:
    """The folder or hub id in `source`, without `random:`."""
    return source.removeprefix(_RANDOM)


def _config(name: str) -> Qwen2AudioConfig:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name}: no Qwen2-Audio configuration could be loaded ({_first_line(error)}). Give a hub id or a folder"
        ) from None
    if not isinstance(config, Qwen2AudioConfig):
        raise ConfigError(f"{name}: a model of type {config.model_type!r}, not qwen2_audio")
    return config


def _pretrained(kind: Any, name: str, dtype: torch.dtype, **options: Any) -> Any:
    """The `kind` of model in a checkpoint. ConfigError if it cannot be read, or lacks a weight or its shape."""
    # Its report would warn of all that is not wanted here; what matters in it is checked below.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{name}: no Qwen2-Audio weights could be loaded ({_first_line(error)}). Give a complete folder or a hub id"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(map(str, info["missing_keys"]))
    if missing:
        raise ConfigError(f"{name}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if mismatched:
        raise ConfigError(
            f"{name}: {len(mismatched)} weights do not have the shape that config.json gives, such as {mismatched[0]}"
        )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def weights_digest(model: Qwen2AudioModel) -> str:
    """Tells checkpoints apart: SHA-256 of the projector's weight, the same in whichever float type it was loaded."""
    weight = model.multi_modal_projector.linear.weight.detach().to("cpu", torch.bfloat16).contiguous()
    return hashlib.sha256(weight.view(torch.int16).numpy().tobytes()).hexdigest()


def feature_extractor(model: Qwen2AudioModel) -> WhisperFeatureExtractor:
    """What `log_mel` needs for this model."""
    return WhisperFeatureExtractor(feature_size=model.audio_tower.config.num_mel_bins)


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
        config=tower.config, inputs_embeds=hidden, attention_mask=_real(states, longest, hidden.device).long()
    )
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    frames = tower.layer_norm(tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2))
    return frames * _real(counts, frames.shape[1], frames.device)[:, :, None], counts


def encode_audio(model: Qwen2AudioModel, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`encode_tower`, then the projector: frames[B, T, text hidden size] and counts[B] of them."""
    frames, counts = encode_tower(model.audio_tower, mel, lengths)
    # The projector has a bias: what was zero beyond a clip's end would be that.
    return model.multi_modal_projector(frames) * _real(counts, frames.shape[1], frames.device)[:, :, None], counts


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokens to put before audio: `prompt`, then the token that begins audio. ConfigError if there is no such token."""
    if AUDIO_BEGIN not in tokenizer.get_vocab():
        raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no {AUDIO_BEGIN}; it is not Qwen2-Audio's")
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return [*ids, tokenizer.get_vocab()[AUDIO_BEGIN]]


def audio_states(
    model: Qwen2AudioModel, frames: torch.Tensor, counts: torch.Tensor, prompt_ids: Sequence[int]
) -> torch.Tensor:
    """The language model's last states[B, T, hidden] over audio, zero beyond a clip's end.

    `frames` and `counts` come from `encode_audio` (or a cache of it), `prompt_ids` from the function of that name. The
    language model is causal: a prompt acts on audio only from before it, and what follows the audio (the end token, a
    question) cannot reach these states, so it is not run.
    """
    before = model.get_input_embeddings()(torch.tensor(list(prompt_ids), dtype=torch.long, device=model.device))
    frames = frames.to(before.device, before.dtype)
    # Clips are padded on the right, where no real position looks: a mask would only cost the fast causal path.
    inputs = torch.cat([before.expand(len(frames), -1, -1), frames], dim=1)
    states = _run_language_model(model, inputs, None)[:, len(before) :]
    return states * _real(counts, frames.shape[1], states.device)[:, :, None]


def text_states(model: Qwen2AudioModel, token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The language model's last states[N, L, hidden] over token_ids[N, L]; zero where mask[N, L] is."""
    inputs = model.get_input_embeddings()(token_ids.to(model.device))
    mask = mask.to(model.device)
    return _run_language_model(model, inputs, mask) * mask[:, :, None]


def _run_language_model(model: Qwen2AudioModel, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    # Trained weights are float32 even in a bfloat16 model; autocast has them compute in the model's type all the same.
    half = inputs.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(inputs.device.type, inputs.dtype) if half else contextlib.nullcontext():
        return model.language_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state


def _real(counts: torch.Tensor, longest: int, device: torch.device) -> torch.Tensor:
    """True at real positions[B, longest]."""
    return torch.arange(longest, device=device) < counts.to(device)[:, None]
