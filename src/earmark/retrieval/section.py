"""The configuration's section `retrieval`: what in it cannot be trained, told before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earmark.errors import ConfigError
from earmark.files import read_json
from earmark.retrieval.temperature import LEAST_TEMPERATURE


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
    objective = retrieval["pooled"]["objective"]
    if objective["learn_temperature"] and objective["temperature"] < LEAST_TEMPERATURE:
        raise ConfigError(
            f"retrieval.pooled.objective.temperature is {objective['temperature']:g}; one that is learned begins at "
            f"{LEAST_TEMPERATURE:g} or above, which it never falls below"
        )
    if retrieval["pooled"]["towers"] == "qwen2_audio":
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
