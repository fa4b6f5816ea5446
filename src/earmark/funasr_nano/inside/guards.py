"""What FunASR's trainer lets pass, held against what was declared: which parameters train, and what was saved."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from earmark.errors import EarmarkError

log = logging.getLogger(__name__)

_NAMED = 3  # parameters in a message


class WrongParameters(EarmarkError):
    """What would train is not what was declared."""


class BadCheckpoint(EarmarkError):
    """A saved file holds what no model may hold, or lacks what it must hold."""


class UnsafeWeights(EarmarkError):
    """A file of weights holds more than tensors and plain values: loading it could run code."""


def is_lora(name: str) -> bool:
    """Whether a parameter of that name is an adapter's."""
    return name.endswith((".lora_A", ".lora_B"))


def declared(model: nn.Module, conf: Mapping[str, Any]) -> set[str]:
    """Names of the parameters that the configuration says will train.

    WrongParameters if adapters are asked for and the model has none, or if nothing would train.
    """
    llm_conf = conf.get("llm_conf") or {}
    names = [name for name, _ in model.named_parameters()]
    adapters = {name for name in names if is_lora(name)}
    if llm_conf.get("use_lora", False) and not adapters:
        targets = (llm_conf.get("lora_conf") or {}).get("target_modules", ["q_proj", "v_proj"])
        llm: Any = model.llm
        linear = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
        raise WrongParameters(
            f"llm_conf.use_lora is true, but no layer of the language model got an adapter: lora_conf.target_modules "
            f"is {list(targets)}, and its linear layers are called {', '.join(sorted(linear))}"
        )
    if conf.get("lora_only", False):
        trained = set(adapters)
        bias = conf.get("lora_bias", "none")
        if bias == "all":
            trained |= {name for name in names if "bias" in name}
        elif bias == "lora_only":
            trained |= {f"{name.removesuffix('.lora_A')}.bias" for name in adapters if name.endswith(".lora_A")} & set(
                names
            )
    else:
        # The defaults are FunASR's; the CTC decoder takes no part in this training.
        frozen = {
            "audio_encoder": (conf.get("audio_encoder_conf") or {}).get("freeze", True),
            "audio_adaptor": (conf.get("audio_adaptor_conf") or {}).get("freeze", False),
            "llm": llm_conf.get("freeze", True),
        }
        trained = adapters | {name for name in names if not frozen.get(name.partition(".")[0], True)}
    stopped = _as_list(conf.get("freeze_param"))
    trained -= {name for name in trained if any(name == part or name.startswith(f"{part}.") for part in stopped)}
    if not trained:
        raise WrongParameters(
            "nothing would train: all modules are frozen and there are no adapters; set llm_conf.use_lora, or one of "
            "audio_encoder_conf.freeze, audio_adaptor_conf.freeze, llm_conf.freeze to false (with lora_only: false)"
        )
    return trained


def audit(model: nn.Module, trained: set[str]) -> dict[str, Any]:
    """Count parameters by part: {parts: {part: {parameters, trainable, dtypes, trainable_dtypes}}, parameters,
    trainable}.

    WrongParameters if one trains that is not in `trained`, one of these does not, or one would train in float16.
    """
    parts: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in trained:
            raise WrongParameters(
                f"{name} must stay as it is, but would train; FunASR froze less than the configuration says"
            )
        if not parameter.requires_grad and name in trained:
            raise WrongParameters(
                f"{name} must train, but is frozen; look at freeze_param, lora_only and the freeze keys"
            )
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.requires_grad and parameter.dtype == torch.float16:
            raise WrongParameters(
                f"{name} would train in float16, where AdamW's epsilon of 1e-8 is zero and a step is 0/0; "
                "llm_conf.llm_dtype must be bf16 or fp32"
            )
        part = "lora" if is_lora(name) else name.partition(".")[0]
        counted = parts.setdefault(part, {"parameters": 0, "trainable": 0, "dtypes": set(), "trainable_dtypes": set()})
        counted["parameters"] += parameter.numel()
        counted["dtypes"].add(dtype)
        if parameter.requires_grad:
            counted["trainable"] += parameter.numel()
            counted["trainable_dtypes"].add(dtype)
    for counted in parts.values():
        counted |= {key: sorted(counted[key]) for key in ("dtypes", "trainable_dtypes")}
    return {
        "parts": parts,
        "parameters": sum(counted["parameters"] for counted in parts.values()),
        "trainable": sum(counted["trainable"] for counted in parts.values()),
    }


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of those that hold NaN or infinity."""
    bad = []
    for name, tensor in tensors:
        if torch.is_floating_point(tensor) and not bool(torch.isfinite(tensor).all()):
            bad.append(name)
    return bad


def named(names: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def check_safe(path: Path) -> None:
    """UnsafeWeights if a file to load is not of tensors and plain values alone: FunASR may load it by any pickle."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # pickle, zip and torch each have their own
        raise UnsafeWeights(
            f"{path}: does not load as weights alone ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "it is not whole, or loading it could run code in it. Get the model anew"
        ) from None


def saved_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file that FunASR saved (tensors and plain values alone). BadCheckpoint if unreadable."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return saved["state_dict"]
    except Exception as error:  # pickle, zip and torch each have their own
        raise BadCheckpoint(
            f"{path}: no whole file of weights ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            "remove it and train again"
        ) from None


def check_saved(path: Path, names: Iterable[str], *, use_lora: bool) -> int:
    """How many tensors a saved file holds. BadCheckpoint if one is not finite, or one of `names` or LoRA is missing."""
    weights = saved_weights(path)
    if use_lora and not any(map(is_lora, weights)):
        raise BadCheckpoint(f"{path}: LoRA was asked for, but the file holds no adapters (lora_A, lora_B); train again")
    if missing := sorted(set(names) - weights.keys()):
        raise BadCheckpoint(f"{path}: lacks {len(missing)} of the model's tensors: {named(missing)}; train again")
    if bad := not_finite(weights.items()):
        raise BadCheckpoint(
            f"{path}: NaN or infinity in {len(bad)} of {len(weights)} tensors: {named(bad)}; lower optim_conf.lr, or "
            "set llm_conf.llm_dtype to fp32"
        )
    return len(weights)


def _as_list(value: Any) -> list[str]:
    if value is None:
        return []
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
