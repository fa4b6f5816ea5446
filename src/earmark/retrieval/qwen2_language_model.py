"""The second part of the audio route with Qwen2-Audio: the audio tower's frames in, the language model's states out.

This part is trained: by LoRA adapters on the language model, and by unfreezing its last layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2AudioModel

from earmark.errors import ConfigError, InputError
from earmark.qwen2_audio import base_name, load_tokenizer
from earmark.retrieval.module_files import SavedModule, open_weights
from earmark.retrieval.qwen2_audio import (
    audio_prompt_ids,
    audio_states,
    base_weights,
    load_language_model,
    weights_digest,
)

# By full path: the plain suffixes q_proj and v_proj would adapt an audio tower too.
LORA_TARGETS = r"^(?:model\.)?language_model\.(?:.*\.)?(?:q_proj|v_proj)$"
_BASE = "base"  # the folder of a saved base


def train_language_model(
    model: Qwen2AudioModel, *, lora_r: int, lora_alpha: float, lora_dropout: float, unfreeze_layers: int
) -> list[str]:
    """Let a part of the language model train, in place, and return the names of the trained parameters.

    The last `unfreeze_layers` layers train as they are; q_proj and v_proj of the others get LoRA adapters of rank
    `lora_r` (0: none). All else is frozen. Trained parameters are float32, whatever the model's type. ConfigError if
    the numbers do not fit the model, or a part of it trains already.
    """
    layers = model.language_model.config.num_hidden_layers
    if lora_r < 0 or not 0 <= unfreeze_layers <= layers:
        raise ConfigError(
            f"retrieval.pooled.qwen2_audio: lora_r is {lora_r} and unfreeze_layers {unfreeze_layers}; give lora_r 0 or "
            f"more, and unfreeze_layers 0 to {layers}, the number of the language model's layers"
        )
    if lora_r and unfreeze_layers == layers:
        raise ConfigError(f"all {layers} layers train as they are, none is left for LoRA; set lora_r to 0")
    if hasattr(model, "peft_config") or any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("a part of this Qwen2-Audio trains already; load another one")
    if lora_r:
        unfrozen = "|".join(str(index) for index in range(layers - unfreeze_layers, layers))
        config = LoraConfig(
            r=lora_r,
            lora_alpha=lora_alpha,  # type: ignore[arg-type]  # used as a factor
            lora_dropout=lora_dropout,
            target_modules=LORA_TARGETS,
            exclude_modules=rf".*language_model\.layers\.(?:{unfrozen})\..*" if unfreeze_layers else None,
        )
        inject_adapter_in_model(config, model)
    for layer in model.language_model.layers[layers - unfreeze_layers :]:
        layer.requires_grad_(True)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in trained.values():
        parameter.data = parameter.data.float()
    return sorted(trained)


def refuse_half_precision(module: nn.Module) -> None:
    """ConfigError if a parameter that would be trained is not float32."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"{name} would be trained in {str(parameter.dtype).removeprefix('torch.')}. In float16 AdamW's eps of "
                "1e-8 is 0, and the zero gradient of lora_A at the first step makes 0/0; in bfloat16 small updates "
                "round away. Keep trained parameters in float32: do not call .half() or .to(dtype) on the model"
            )


class Qwen2LanguageModel(SavedModule):
    """Turns the audio tower's frames[B, T, frame_dim] into the language model's states[B, T, hidden_dim].

    Frames go through Qwen2-Audio's own projector, always frozen, and `prompt` stands before them. Of the language model
    train what `train_language_model` says; this module owns it, and `Qwen2TextTower` shares it.

    `model`, if given, is what `load_language_model(source, seed)` returned; parts of it are made trainable in place.
    Saved are the trained weights alone, with `source` and a digest that tells whether the base found there is the same:
    the 7B model is 16 GB, and no training changes it. With `save_base` the base is saved too, in a folder beside them.
    """

    config_keys = [  # noqa: RUF012 (the base class's protocol)
        "source", "seed", "prompt", "lora_r", "lora_alpha", "lora_dropout", "unfreeze_layers", "save_base",
        "base_digest",
    ]  # fmt: skip

    def __init__(
        self,
        source: str,
        seed: int,
        *,
        prompt: str,
        lora_r: int,
        lora_alpha: float,
        lora_dropout: float,
        unfreeze_layers: int,
        gradient_checkpointing: bool = False,
        save_base: bool = False,
        base_digest: str | None = None,
        base_folder: str | None = None,
        model: Qwen2AudioModel | None = None,
    ):
        super().__init__()
        self.source, self.seed, self.prompt = _located(source), seed, prompt
        self.lora_r, self.lora_alpha, self.lora_dropout = lora_r, lora_alpha, lora_dropout
        self.unfreeze_layers, self.save_base = unfreeze_layers, save_base
        found = base_folder or source
        self.base = model if model is not None else load_language_model(found, seed)
        self.tokenizer = load_tokenizer(found)
        self.trained = train_language_model(
            self.base,
            lora_r=lora_r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            unfreeze_layers=unfreeze_layers,
        )
        self.base_digest = weights_digest(self.base)
        if base_digest not in (None, self.base_digest):
            raise ConfigError(
                f"{found}: other weights than those this retriever was trained on; put that checkpoint there again"
            )
        if gradient_checkpointing:
            self.base.language_model.activation_checkpointing_enable({"use_reentrant": False})
        self._prompt_ids = audio_prompt_ids(self.tokenizer, prompt)

    @property
    def frame_dim(self) -> int:
        """How wide the frames are that this takes."""
        return self.base.multi_modal_projector.linear.in_features

    @property
    def hidden_dim(self) -> int:
        """How wide the states are that this gives."""
        return self.base.language_model.config.hidden_size

    def trained_weights(self) -> dict[str, torch.Tensor]:
        """The weights that train, by their names in the base, on the CPU."""
        return {name: self.base.get_parameter(name).detach().cpu().contiguous() for name in self.trained}

    def train(self, mode: bool = True) -> Self:
        """ConfigError if something would train in half precision."""
        super().train(mode)
        self.base.multi_modal_projector.eval()
        if mode:
            refuse_half_precision(self)
        return self

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        frames, counts = features["frames"], features["frame_lengths"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.trained)):
            states = audio_states(self.base, frames, counts, self._prompt_ids)
        # A new dictionary: run twice on the same batch, the states must not be taken for the tower's frames.
        return {**features, "frames": states.float()}

    def save_torch_weights(self, output_path: str, safe_serialization: bool = True) -> None:
        """Write the trained weights alone."""
        save_file(self.trained_weights(), Path(output_path, "model.safetensors"))
        if self.save_base:
            folder = Path(output_path, _BASE)
            self.base.config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            weights = {name: weight.cpu().contiguous() for name, weight in base_weights(self.base).items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            open_weights(folder)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", *args: Any, **kwargs: Any) -> Self:
        """Read what `save` wrote. ConfigError if the base is gone, or another one stands in its place."""
        base = Path(model_name_or_path, subfolder, _BASE)
        if base.is_dir():
            kwargs["init_defaults"] = {**(kwargs.get("init_defaults") or {}), "base_folder": str(base)}
        return super().load(model_name_or_path, subfolder, *args, **kwargs)

    @classmethod
    def load_torch_weights(cls, *args: Any, model: Self | None = None, **kwargs: Any) -> Any:
        """Read what `save_torch_weights` wrote into `model`. InputError if these are not just the trained weights."""
        weights = super().load_torch_weights(*args, **kwargs)
        if model is None:
            return weights
        expected = {name: model.base.get_parameter(name) for name in model.trained}
        wrong = sorted(expected.keys() ^ weights.keys()) or sorted(
            name for name, parameter in expected.items() if parameter.shape != weights[name].shape
        )
        if wrong:
            raise InputError(f"{args[0]}: {len(wrong)} trained weights are missing or do not fit, such as {wrong[0]}")
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(weights[name])
        return model


def _located(source: str) -> str:
    """`source`, if it is a folder as seen from anywhere."""
    name = base_name(source)
    return source.removesuffix(name) + str(Path(name).resolve()) if Path(name).is_dir() else source


class MeanProjection(SavedModule):
    """The last part of the audio route: the mean of a clip's real states, projected to `embedding_dim`."""

    config_keys = ["hidden_dim", "embedding_dim"]  # noqa: RUF012 (the base class's protocol)

    def __init__(self, hidden_dim: int, embedding_dim: int):
        super().__init__()
        self.hidden_dim, self.embedding_dim = hidden_dim, embedding_dim
        self.projection = nn.Linear(hidden_dim, embedding_dim)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        states = features["frames"]  # zero beyond a clip's end
        mean = states.sum(dim=1) / features["frame_lengths"].to(states.device)[:, None]
        return {**features, "sentence_embedding": self.projection(mean)}

    def get_embedding_dimension(self) -> int:
        return self.embedding_dim
