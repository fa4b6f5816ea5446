"""LoRA adapters: their types, and PEFT's own folders of them.

    adapter_model.safetensors   lora_A and lora_B of each adapted layer, and nothing else
    adapter_config.json         what they belong to

`peft.PeftModel.from_pretrained(base, folder, adapter_name=...)` loads such a folder onto the base, and several of them
side by side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from earmark.artifacts import atomic_path
from earmark.errors import ConfigError
from earmark.speech_llm.model import put_weights

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def set_adapter_types(model: nn.Module, *, fp32: bool, init_scale: float) -> None:
    """Give new adapters float32, or their layers' type; lora_A, which is drawn at random, times `init_scale`."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        base = model.get_parameter(name[: name.index(".lora_")] + ".base_layer.weight")
        if fp32:
            parameter.data = parameter.data.float()
        elif base.dtype.is_floating_point:
            parameter.data = parameter.data.to(base.dtype)
        if ".lora_A." in name:
            parameter.data *= init_scale


def save_adapter(model: PeftModel, folder: Path) -> list[Path]:
    """Write the adapter of `model` as PEFT's folder; the two files."""
    files = [folder / ADAPTER_WEIGHTS, folder / ADAPTER_CONFIG]
    weights = {name: weight.contiguous() for name, weight in adapter_weights(model).items()}
    with atomic_path(files[0]) as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    with tempfile.TemporaryDirectory(dir=folder) as scratch, atomic_path(files[1]) as temporary:
        replace(model.peft_config["default"], inference_mode=True).save_pretrained(scratch)
        (Path(scratch) / ADAPTER_CONFIG).replace(temporary)
    return files


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Put what `save_adapter` wrote into a model with such an adapter.

    ConfigError, and nothing is loaded, if the file cannot be read or holds other weights than the model wants.
    """
    path = folder / ADAPTER_WEIGHTS
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors ({error}); copy or train it again") from None
    put_weights(saved, dict(adapter_weights(model)), path)


def adapter_weights(model: PeftModel) -> Mapping[str, torch.Tensor]:
    """The adapter's weights by PEFT's names in a file: views, not copies."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach() for name, weight in weights.items()}
