"""LoRA on Qwen2-Audio's language model, and on nothing else of it."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from transformers import Qwen2AudioForConditionalGeneration

from earmark.speech_llm.audit import audit

# By full path: the plain suffixes q_proj and v_proj adapt the audio tower too, which then trains though it is called
# frozen (5,505,024 parameters of the 7B model in place of 4,194,304).
LORA_TARGETS = r"^(?:model\.)?language_model\.(?:.*\.)?(?:q_proj|v_proj)$"


def add_lora(
    model: Qwen2AudioForConditionalGeneration, *, r: int = 8, alpha: int = 16, dropout: float = 0.05
) -> dict[str, Any]:
    """Freeze `model` and put float32 adapters of rank `r` into its language model. Returns the audit.

    WrongParameters if anything else would train.
    """
    model.requires_grad_(False)
    inject_adapter_in_model(
        LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS),
        model,
    )
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    return audit(model, {name for name, _ in model.named_parameters() if _is_adapter(name)})


def _is_adapter(name: str) -> bool:
    return name.removeprefix("model.").startswith("language_model.") and ".lora_" in name
