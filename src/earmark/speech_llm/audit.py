"""Which parameters train: held against what the settings declare, before the first step, and written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from earmark.errors import EarmarkError
from earmark.speech_llm.lora_targets import adapted_modules
from earmark.speech_llm.settings import ModelSettings
from earmark.trained_share import trained_share

FP16_REASON = (
    "AdamW's epsilon of 1e-8 is zero in float16, and lora_A has no gradient in the first step, so the update is 0/0 "
    "and the weight NaN. Train in float32 (lora_fp32, projector_fp32)"
)


class WrongParameters(EarmarkError):
    """What would train is not what was declared."""


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to.

    whisper, projector, lora or qwen3; of Qwen2-Audio audio_tower, projector, lora or language_model.
    """
    if ".lora_" in name:
        return "lora"
    first, _, rest = name.partition(".")
    if first != "qwen2_audio":
        return first
    if "audio_tower." in rest:
        return "audio_tower"
    return "projector" if "multi_modal_projector." in rest else "language_model"


def declared(model: nn.Module, settings: ModelSettings) -> set[str]:
    """Names of the parameters that the settings say will train. ConfigError if lora_targets name no linear layer.

    Adapters are told from targets and layers, not from what is in the model: `audit` then finds one that is missing.
    """
    if settings.architecture == "qwen2_audio":
        return _declared_of_qwen2_audio(model, settings)
    layers = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    adapted = layers - settings.train_qwen3_layers
    whole = tuple(f"qwen3.model.layers.{layer}." for layer in range(adapted, layers))
    names = set()
    for layer in range(adapted) if settings.use_lora else ():
        path = f"qwen3.model.layers.{layer}"
        for module in adapted_modules(model.get_submodule(path), settings.lora_targets):
            names |= {f"{path}.{module}.lora_{side}.default.weight" for side in "AB"}
    for name, _ in model.named_parameters():
        match part_of(name):
            case "projector":
                names.add(name)
            case "whisper" if not settings.freeze_whisper and not name.endswith("embed_positions.weight"):
                names.add(name)
            case "qwen3" if name.startswith(whole) and whole:
                names.add(name)
    return names


def _declared_of_qwen2_audio(model: nn.Module, settings: ModelSettings) -> set[str]:
    if settings.method == "projector":
        return {f"qwen2_audio.model.multi_modal_projector.linear.{name}" for name in ("weight", "bias")}
    names = set()
    for layer in range(int(model.config.num_hidden_layers) if settings.method == "lora" else 0):  # type: ignore[union-attr, arg-type]
        path = f"qwen2_audio.base_model.model.model.language_model.layers.{layer}"
        for module in adapted_modules(model.get_submodule(path), settings.lora_targets):
            names |= {f"{path}.{module}.lora_{side}.default.weight" for side in "AB"}
    return names


def audit(model: nn.Module, trained: set[str]) -> dict[str, Any]:
    """Count parameters, in all and by part: {parameters, trainable, share, trainable_bytes, parts: {part: {parameters,
    trainable, share, state, dtypes, trainable_dtypes}}}. A part's state is frozen, trained or partly trained.

    WrongParameters if one trains that is not in `trained`, one of these does not or is not there, or one would be
    trained in float16.
    """
    if missing := sorted(trained - {name for name, _ in model.named_parameters()}):
        raise WrongParameters(f"{missing[0]} must train, but is not in the model; this is a defect or a changed model")
    parts: dict[str, dict[str, Any]] = {}
    trainable_bytes = 0
    for name, parameter in model.named_parameters():
        count = _count(parameter)
        if parameter.requires_grad and name not in trained:
            raise WrongParameters(f"{name} must stay as it is, but would train; this is a defect or a changed model")
        if not parameter.requires_grad and name in trained:
            raise WrongParameters(f"{name} must train, but is frozen; this is a defect or a changed model")
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise WrongParameters(f"{name} would be optimised in float16: {FP16_REASON}")
        part = parts.setdefault(
            part_of(name), {"parameters": 0, "trainable": 0, "dtypes": set(), "trainable_dtypes": set()}
        )
        part["parameters"] += count
        part["dtypes"].add(dtype)
        if parameter.requires_grad:
            part["trainable"] += count
            trainable_bytes += parameter.numel() * parameter.element_size()
            part["trainable_dtypes"].add(dtype)
    for part in parts.values():
        part |= {key: sorted(part[key]) for key in ("dtypes", "trainable_dtypes")}
        part |= trained_share(part["parameters"], part["trainable"])
    counted, trainable = (sum(part[key] for part in parts.values()) for key in ("parameters", "trainable"))
    return {
        "parts": parts,
        "parameters": counted,
        "trainable": trainable,
        "share": trainable / counted,
        "trainable_bytes": trainable_bytes,
    }


def _count(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds: bitsandbytes packs two of 4 bit into a byte, and keeps their shape aside."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def checkpoint_size(files: Sequence[Path], report: dict[str, Any]) -> dict[str, Any]:
    """What a training wrote, in bytes: {bytes, files: {name: bytes}}.

    WrongParameters if the weights in them take another room than what `report` says trains: something else was saved,
    or not all.
    """
    weights = [path for path in files if path.suffix == ".safetensors"]
    saved = sum(tensor.nbytes for path in weights for tensor in load_file(path).values())
    if saved != report["trainable_bytes"]:
        raise WrongParameters(
            f"{', '.join(map(str, weights)) or 'no file'}: {saved} bytes of weights, but what trains are "
            f"{report['trainable_bytes']}; this is a defect"
        )
    sizes = {path.name: path.stat().st_size for path in files}
    return {"bytes": sum(sizes.values()), "files": sizes}
