"""Building the model from its settings: loading the two bases, and making what trains."""

from __future__ import annotations

import logging
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3ForCausalLM,
)

from earmark.errors import ConfigError, first_line
from earmark.speech_llm.activation_clamp import clamp_first_q_proj
from earmark.speech_llm.adapters import set_adapter_types
from earmark.speech_llm.clip_encoder import ClipEncoder
from earmark.speech_llm.lora_targets import adapted_modules, target_names
from earmark.speech_llm.model import WhisperQwen3
from earmark.speech_llm.projector import AudioProjector
from earmark.speech_llm.quantisation import quantisation
from earmark.speech_llm.settings import ModelSettings
from earmark.whisper import load_model

log = logging.getLogger(__name__)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Qwen3. ConfigError if there is none."""
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: no tokenizer could be loaded ({first_line(error)})") from None


def build_model(settings: ModelSettings, audio_id: int, seed: int) -> WhisperQwen3:
    """The model on the CPU (or where `device_map` puts Qwen3), new weights drawn from `seed`, ready to train.

    Trainable are: the projector; LoRA's adapters, Qwen3's last layers and Whisper where the settings say so.
    ConfigError if a base cannot be loaded whole, or cannot be quantised here.
    """
    assert settings.whisper_model is not None
    whisper = ClipEncoder(
        load_model(settings.whisper_model).encoder, frozen=settings.freeze_whisper, keep_on_cpu=settings.whisper_cpu
    )
    qwen3 = _load_qwen3(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = AudioProjector(
            whisper.dim,
            qwen3.config.hidden_size,
            kind=settings.projector,
            stack=settings.projector_stack,
            scale=settings.projector_scale,
        )
        if not settings.projector_fp32:
            projector.to(qwen3.model.embed_tokens.weight.dtype)
        if settings.use_lora:
            _add_lora(qwen3, settings)
    if settings.gradient_checkpointing:
        for part in (qwen3, whisper.encoder):  # a frozen encoder keeps nothing, and passes over it
            part.activation_checkpointing_enable()
    for layer in qwen3.model.layers[_first_trained_layer(qwen3, settings) :]:
        layer.float().requires_grad_(True)
    if settings.clamp_q_proj_input:
        clamp_first_q_proj(qwen3, settings.clamp_q_proj_input)
    model = WhisperQwen3(whisper, projector, qwen3, audio_id)
    if model.is_spread:
        whisper.to(model.token_table.device)
        projector.to(model.token_table.device)
    return model


def _first_trained_layer(qwen3: Qwen3ForCausalLM, settings: ModelSettings) -> int:
    layers = len(qwen3.model.layers)
    if settings.train_qwen3_layers > layers:
        raise ConfigError(f"train_qwen3_layers is {settings.train_qwen3_layers}; {settings.qwen3_model} has {layers}")
    return layers - settings.train_qwen3_layers


def _add_lora(qwen3: Qwen3ForCausalLM, settings: ModelSettings) -> None:
    layers = _first_trained_layer(qwen3, settings)
    if not layers:
        raise ConfigError("train_qwen3_layers leaves no layer for LoRA; lower it, or leave use_lora out")
    for layer in qwen3.model.layers[:layers]:
        adapted_modules(layer, settings.lora_targets)
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # peft divides it by r
        lora_dropout=settings.lora_dropout,
        target_modules=target_names(settings.lora_targets),
        layers_to_transform=list(range(layers)),
        layers_pattern="layers",
    )
    inject_adapter_in_model(config, qwen3)
    set_adapter_types(qwen3, fp32=settings.lora_fp32, init_scale=settings.lora_init_scale)


def _load_qwen3(settings: ModelSettings) -> Qwen3ForCausalLM:
    source, on_gpu = settings.qwen3_model, torch.cuda.is_available()
    assert source is not None
    automatic = torch.bfloat16 if on_gpu else torch.float32
    dtype = automatic if settings.qwen3_dtype == "auto" else getattr(torch, settings.qwen3_dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if settings.device_map:
        options["device_map"] = settings.device_map
    if quantised := settings.load_in_4bit or settings.load_in_8bit:
        options["quantization_config"] = quantisation(settings, dtype)
    try:
        loaded: Any = Qwen3ForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"{source}: Qwen3 could not be loaded ({first_line(error)}). Where memory ran out, take a smaller one, "
            "load_in_4bit or device_map; else weights that fit config.json"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"{source}: no Qwen3 could be loaded ({first_line(error)}). Give a complete folder or a hub id"
        ) from None
    model, info = loaded
    # Where `transformers` would silently leave weights random.
    if lost := sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"]))):
        raise ConfigError(f"{source}: the checkpoint lacks {len(lost)} weights, such as {lost[0]}")
    if quantised:
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model.requires_grad_(False)
