"""The two halves of Qwen2-Audio that a retriever is made of: the audio tower, and the language model behind it.

    log_mel -> encode_tower -> frames of the audio tower, 40 ms each
                               -> audio_states: projected, and what the language model makes of them
    term    -> tokens       -> text_states: the same language model over text

`log_mel` and `encode_tower` are those of `earmark.qwen2_audio`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Qwen2AudioEncoder, Qwen2AudioModel

from earmark.errors import ConfigError
from earmark.qwen2_audio import RANDOM, base_name, load_config, load_pretrained, real_positions

AUDIO_BEGIN = "<|audio_bos|>"
_SAMPLED = 1024  # numbers of a weight that its digest is made of


def load_language_model(
    source: str, seed: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Qwen2AudioModel:
    """Load projector and language model, without output layer and audio tower (None): frozen, in evaluation mode.

    `source` is a folder or hub id (`Qwen/Qwen2-Audio-7B-Instruct`), or `random:` + one: the same configuration, weights
    drawn from `seed` in bfloat16 (17 GB for the 7B model), the type of the published ones, whatever `dtype` is.
    `device` is by default the GPU where there is one; `dtype` bfloat16 on a GPU, float32 on a CPU. ConfigError if there
    is no such model, if the checkpoint lacks a weight or has one of another shape (which `transformers` would silently
    leave random), or for float16.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if dtype == torch.float16:
        raise ConfigError(f"{source}: its states leave the range of float16; load it in bfloat16 or float32")
    name = base_name(source)
    config = load_config(name)
    if source.startswith(RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Qwen2AudioModel._from_config(config, dtype=torch.bfloat16)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    else:
        model = load_pretrained(Qwen2AudioModel, name, dtype, unused=("audio_tower.",))
    model.audio_tower = None  # the audio route begins with it, loaded by itself
    model.to(device=device)  # no type: the rotary embedding's frequencies stay float32
    return model.requires_grad_(False).eval()


def load_audio_tower(source: str, seed: int) -> Qwen2AudioEncoder:
    """Load the audio tower alone, without projector and language model: frozen, in evaluation mode, on the CPU.

    `source` and errors are those of `load_language_model`. Weights are float32, but rounded to bfloat16, the type in
    which they are published and kept: a tower that was saved in it gives the frames of the tower that was saved.
    """
    name = base_name(source)
    config: Any = load_config(name).audio_config
    if source.startswith(RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tower = Qwen2AudioEncoder(config).bfloat16()
    else:
        prefix = {r"^(?:model\.)?audio_tower\.": ""}
        tower = load_pretrained(Qwen2AudioEncoder, name, torch.bfloat16, config=config, key_mapping=prefix)
    return tower.float().requires_grad_(False).eval()


def base_weights(model: Qwen2AudioModel) -> dict[str, torch.Tensor]:
    """The weights of projector and language model by their own names, adapters left out."""
    # What LoRA wraps has one module more in its name.
    named = {name.replace(".base_layer.", "."): weight for name, weight in model.named_parameters()}
    return {name: weight.detach() for name, weight in named.items() if ".lora_" not in name}


def weights_digest(model: Qwen2AudioModel) -> str:
    """Tells checkpoints apart: SHA-256 over each frozen weight's name and shape, and some thousand of its numbers.

    The same in whichever float type a checkpoint was loaded, and with adapters or without. All numbers of 15 GB would
    take longer than loading them, and who fine-tunes a model changes more of a weight than what lies between those.
    """
    training = {name for name, weight in model.named_parameters() if weight.requires_grad}
    digest = hashlib.sha256()
    for name, weight in sorted(base_weights(model).items()):
        if name in training:
            continue
        flat = weight.flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def audio_prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokens to put before audio: `prompt`, then the token that begins audio. ConfigError if there is no such token."""
    if AUDIO_BEGIN not in tokenizer.get_vocab():
        raise ConfigError(f"{tokenizer.name_or_path}: the tokenizer has no {AUDIO_BEGIN}; it is not Qwen2-Audio's")
    return [*text_prompt_ids(tokenizer, prompt), tokenizer.get_vocab()[AUDIO_BEGIN]]


def text_prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokens to put before a text."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    return ids


def audio_states(
    model: Qwen2AudioModel, frames: torch.Tensor, counts: torch.Tensor, prompt_ids: Sequence[int]
) -> torch.Tensor:
    """The language model's last states[B, T, hidden] over audio, zero beyond a clip's end.

    `frames`[B, T, dim] and `counts`[B] come from `encode_tower` (or a cache of it), `prompt_ids` from
    `audio_prompt_ids`. The language model is causal: a prompt acts on audio only from before it, and what follows the
    audio (the end token, a question) cannot reach these states, so it is not run.
    """
    before = _embedded(model, prompt_ids)
    projected = model.multi_modal_projector(frames.to(before.device, before.dtype))
    # Clips are padded on the right, where no real position looks: a mask would only cost the fast causal path.
    inputs = torch.cat([before.expand(len(frames), -1, -1), projected], dim=1)
    states = _run_language_model(model, inputs, None)[:, len(before) :]
    return states * real_positions(counts, frames.shape[1], states.device)[:, :, None]


def text_states(
    model: Qwen2AudioModel, token_ids: torch.Tensor, mask: torch.Tensor, prompt_ids: Sequence[int] = ()
) -> torch.Tensor:
    """The language model's last states[N, L, hidden] over token_ids[N, L], a prompt before each row.

    Zero where mask[N, L] is; rows are padded on the right.
    """
    before = _embedded(model, prompt_ids)
    mask = mask.to(model.device)
    texts = model.get_input_embeddings()(token_ids.to(model.device))
    inputs = torch.cat([before.expand(len(texts), -1, -1), texts], dim=1)
    whole = torch.cat([mask.new_ones(len(mask), len(before)), mask], dim=1)
    return _run_language_model(model, inputs, whole)[:, len(before) :] * mask[:, :, None]


def _embedded(model: Qwen2AudioModel, token_ids: Sequence[int]) -> torch.Tensor:
    return model.get_input_embeddings()(torch.tensor(list(token_ids), dtype=torch.long, device=model.device))


def _run_language_model(model: Qwen2AudioModel, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    # Trained weights are float32 even in a bfloat16 model; autocast has them compute in the model's type all the same.
    half = inputs.dtype == torch.bfloat16
    with torch.autocast(inputs.device.type, inputs.dtype) if half else contextlib.nullcontext():
        return model.language_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
