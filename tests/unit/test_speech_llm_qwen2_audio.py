"""Qwen2-Audio-7B with adapters, counted on the meta device: nothing is loaded, no network is needed."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from earmark.speech_llm.audit import WrongParameters, audit
from earmark.speech_llm.qwen2_audio_lora import add_lora

# config.json of Qwen/Qwen2-Audio-7B-Instruct.
CONFIG_7B = {
    "audio_token_index": 151646,
    "audio_config": {
        "model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "encoder_layers": 32, "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120, "d_model": 1280, "scale_embedding": False, "activation_function": "gelu",
        "max_source_positions": 1500,
    },
    "text_config": {
        "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156032, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000, "torch_dtype": "bfloat16", "use_mrope": False,
    },
}  # fmt: skip


@pytest.fixture
def model() -> Qwen2AudioForConditionalGeneration:
    with torch.device("meta"):
        return Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(**CONFIG_7B)).bfloat16()


def test_lora_trains_4194304_parameters_of_the_language_model_alone(model: Qwen2AudioForConditionalGeneration) -> None:
    report = add_lora(model)
    assert report["trainable"] == 4_194_304
    assert report["parameters"] == 8_397_094_912 + 4_194_304
    parts = report["parts"]
    assert {name: (part["parameters"], part["trainable"]) for name, part in parts.items()} == {
        "audio_tower": (636_968_960, 0),
        "multi_modal_projector": (5_246_976, 0),
        "language_model": (7_754_878_976 - parts["lm_head"]["parameters"], 0),
        "lm_head": (156_032 * 4096, 0),
        "lora": (4_194_304, 4_194_304),
    }
    assert parts["lora"]["trainable_dtypes"] == ["float32"]
    assert parts["language_model"]["dtypes"] == ["bfloat16"]
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 32 * 2 * 2
    assert all(name.startswith("model.language_model.layers.") for name in trained)


def test_adapters_in_the_audio_tower_are_refused(model: Qwen2AudioForConditionalGeneration) -> None:
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=8, target_modules=["q_proj", "v_proj"]), model)
    declared = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "language_model" in name
    }  # fmt: skip
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 5_505_024
    with pytest.raises(WrongParameters, match=r"model\.audio_tower\..*[qv]_proj\.lora_A.* must stay as it is"):
        audit(model, declared)
