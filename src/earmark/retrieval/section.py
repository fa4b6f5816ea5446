"""The configuration's section `retrieval`: what in it cannot be trained, told before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earmark.errors import ConfigError
from earmark.files import read_json


def check_retrieval(retrieval: Mapping[str, Any], schedule: Mapping[str, Any]) -> None:
    """ConfigError for sections `retrieval` and `train.schedule` of which the training would fail.

    It would do so after all chunks are encoded. An encoder that is a hub id is not looked at: that takes a network.
    """
    if retrieval["interaction"] == "alignment":
        if schedule["sub_batch_size"] is not None:
            raise ConfigError(
                "train.schedule.sub_batch_size is for pooled retrievers (retrieval.interaction: pooled); set it to null"
            )
        return
    towers, text_model = retrieval["pooled"]["towers"], Path(retrieval["pooled"]["text_model"]["source"])
    if towers in ("text_model", "fused") and text_model.is_dir() and not (text_model / "modules.json").is_file():
        raise ConfigError(
            f"retrieval.pooled.text_model.source, {text_model}, holds no modules.json, so it is no Sentence "
            "Transformers model; give a folder or hub id of one"
        )
    if towers == "qwen2_audio":
        kind = _model_type(retrieval["encoder"])
        if kind not in (None, "qwen2_audio"):
            raise ConfigError(
                f"retrieval.pooled.towers is qwen2_audio, but retrieval.encoder, {retrieval['encoder']}, is a model of "
                f"type {kind}; give it a Qwen2-Audio (Qwen/Qwen2-Audio-7B-Instruct, or a folder), or set towers to "
                "spelling"
            )


def _model_type(encoder: str) -> str | None:
    """What `config.json` of a bundled model or a folder says; None where that is not known without a network."""
    if encoder.startswith("bundled:"):
        return "whisper"
    config = Path(encoder, "config.json")
    if not config.is_file():
        return None
    told = read_json(config)
    return told.get("model_type") if isinstance(told, dict) else None
