"""The first part of the audio route with Qwen2-Audio: raw speech in, frames out.

`Qwen2AudioTowerFrames` is its audio tower alone. `Qwen2AudioFrames` goes on through projector and language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from sentence_transformers.base.modality_types import Modality
from sentence_transformers.base.modules import InputModule
from torch import nn
from transformers import Qwen2AudioEncoder, Qwen2AudioEncoderConfig, Qwen2AudioModel

from earmark.errors import ConfigError, InputError
from earmark.retrieval.encoders import FrozenEncoder, samples_of
from earmark.retrieval.module_files import SavedModule
from earmark.retrieval.qwen2_audio import (
    audio_states,
    check_audio,
    encode_audio,
    encode_tower,
    feature_extractor,
    load_audio_tower,
    load_qwen2_audio,
    load_tokenizer,
    log_mel,
    prompt_ids,
    weights_digest,
)

# By full path: the plain suffixes q_proj and v_proj would adapt the audio tower too.
LORA_TARGETS = r"^(?:model\.)?language_model\.(?:.*\.)?(?:q_proj|v_proj)$"


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


def train_language_model(
    model: Qwen2AudioModel, *, rank: int, alpha: int, dropout: float, unfreeze_layers: int
) -> list[str]:
    """Let a part of the language model train, in place, and return the names of the trained parameters.

    The last `unfreeze_layers` layers train as they are; q_proj and v_proj of the others get LoRA adapters of `rank`
    (0: none). All else is frozen. Trained parameters are float32, whatever the model's type. ConfigError if the numbers
    do not fit the model, or a part of it trains already.
    """
    layers = model.language_model.config.num_hidden_layers
    if rank < 0 or not 0 <= unfreeze_layers <= layers:
        raise ConfigError(f"LoRA rank {rank}, {unfreeze_layers} of {layers} layers unfrozen: one is out of range")
    if rank and unfreeze_layers == layers:
        raise ConfigError(f"all {layers} layers train as they are, none is left for LoRA; set its rank to 0")
    if hasattr(model, "peft_config") or any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("a part of this Qwen2-Audio trains already; load another one")
    if rank:
        unfrozen = "|".join(str(index) for index in range(layers - unfreeze_layers, layers))
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
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


class Qwen2AudioFrames(SavedModule, InputModule):
    """Turns audio into frames[B, T, text hidden size] (40 ms each) and `frame_lengths`[B], with Qwen2-Audio.

    With `through_language_model`, frames are the language model's states over the projector's frames, `prompt` before
    them; else they are the projector's. Audio tower and projector are always frozen. Of the language model train what
    `train_language_model` says; this module owns it, and `Qwen2TextTower` may share it.

    Batches that hold `frames` of the projector, because they were encoded once and cached, do not run the audio tower.

    `model`, if given, is what `load_qwen2_audio(source, seed)` returned; parts of it are made trainable in place. Saved
    are the trained weights alone, with `source` and a digest that tells whether the base found there is the same.
    """

    config_keys = [  # noqa: RUF012 (the base class's protocol)
        "source", "seed", "through_language_model", "prompt", "lora_rank", "lora_alpha", "lora_dropout",
        "unfreeze_layers", "gradient_checkpointing", "base_digest",
    ]  # fmt: skip

    def __init__(
        self,
        source: str,
        seed: int,
        through_language_model: bool,
        *,
        prompt: str = "",
        lora_rank: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.1,
        unfreeze_layers: int = 0,
        gradient_checkpointing: bool = False,
        base_digest: str | None = None,
        model: Qwen2AudioModel | None = None,
    ):
        super().__init__()
        self.source, self.seed, self.prompt = source, seed, prompt
        self.through_language_model, self.gradient_checkpointing = through_language_model, gradient_checkpointing
        self.lora_rank, self.lora_alpha, self.lora_dropout = lora_rank, lora_alpha, lora_dropout
        self.unfreeze_layers = unfreeze_layers
        self.base = model if model is not None else load_qwen2_audio(source, seed)
        self.base_digest = weights_digest(self.base)
        if base_digest not in (None, self.base_digest):
            raise ConfigError(f"{source}: other weights than those this model was trained on; give the same checkpoint")
        self.trained = train_language_model(
            self.base, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout, unfreeze_layers=unfreeze_layers
        )
        if gradient_checkpointing:
            self.base.language_model.activation_checkpointing_enable({"use_reentrant": False})
        self._extractor = feature_extractor(self.base)
        self._prompt_ids = prompt_ids(load_tokenizer(source), prompt) if through_language_model else []

    @property
    def modalities(self) -> list[Modality]:
        return ["audio"]

    @property
    def frame_dim(self) -> int:
        return self.base.language_model.config.hidden_size

    def train(self, mode: bool = True) -> Self:
        """Audio tower and projector stay in evaluation mode. ConfigError if something would train in half precision."""
        super().train(mode)
        self.base.audio_tower.eval()
        self.base.multi_modal_projector.eval()
        if mode:
            refuse_half_precision(self)
        return self

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        """`inputs`: float arrays[n] at 16 kHz, {"array", "sampling_rate"}, or paths of audio files."""
        clips = [samples_of(item) for item in inputs]
        mel, lengths = log_mel(self._extractor, clips, self.base.audio_tower.config.max_source_positions)
        return {"input_features": mel, "mel_lengths": lengths}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "frames" in features:
            frames, counts = features["frames"], features["frame_lengths"]
        else:
            with torch.no_grad():
                frames, counts = encode_audio(self.base, features["input_features"], features["mel_lengths"])
        if self.through_language_model:
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.trained)):
                frames = audio_states(self.base, frames, counts, self._prompt_ids)
        # A new dictionary: run twice on the same batch, the states must not be taken for the projector's frames.
        return {**features, "frames": frames.float(), "frame_lengths": counts}

    def save_torch_weights(self, output_path: str, safe_serialization: bool = True) -> None:
        """Write the trained weights alone, by their names in the base."""
        weights = {name: self.base.get_parameter(name).detach().cpu().contiguous() for name in self.trained}
        save_file(weights, Path(output_path, "model.safetensors"))

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
