"""The architectures behind one trainer: which model a training's settings build, and how it is talked to."""

from __future__ import annotations

from pathlib import Path

from earmark.speech_llm import qwen2_audio, whisper_qwen3
from earmark.speech_llm.labels import ChatLabels
from earmark.speech_llm.model import SpeechLanguageModel
from earmark.speech_llm.settings import ModelSettings


def load_chat(settings: ModelSettings, tokenizer: Path | None = None) -> ChatLabels:
    """The conversations of the base model's tokenizer, or of the one saved in a folder. ConfigError if it is none."""
    if settings.architecture == "qwen2_audio":
        return qwen2_audio.load_chat(str(tokenizer or settings.qwen2_audio_model))
    return ChatLabels(whisper_qwen3.load_tokenizer(str(tokenizer or settings.qwen3_model)))


def build_model(settings: ModelSettings, audio_id: int, seed: int) -> SpeechLanguageModel:
    """The model on the CPU, new weights drawn from `seed`, ready to train. ConfigError if a base cannot be loaded."""
    build = qwen2_audio.build_model if settings.architecture == "qwen2_audio" else whisper_qwen3.build_model
    return build(settings, audio_id, seed)
