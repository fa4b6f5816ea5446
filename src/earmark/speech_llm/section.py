"""The configuration's section `speech_llm`: its keys are the flags of `settings.py`, with the same defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from earmark.errors import ConfigError
from earmark.speech_llm.settings import DataSettings, ModelSettings, Settings, StabilitySettings, TrainSettings

_GROUPS = (ModelSettings, DataSettings, TrainSettings, StabilitySettings)
# What the workflow itself knows, so that the section does not say it again.
GIVEN = frozenset({"train_json", "valid_json", "data_mode", "max_rejected_fraction", "output_dir", "resume", "seed"})


def settings_of(
    section: Mapping[str, Any],
    *,
    train_json: Path,
    valid_json: Path,
    output_dir: Path,
    seed: int,
    max_rejected_fraction: float,
) -> Settings:
    """The settings of a training on the workflow's exports. ConfigError where values do not go together.

    Keys of `section` that are no flags (those of answering) are passed over.
    """
    if not section["qwen3_model"]:
        raise ConfigError("speech_llm.qwen3_model is not set; give the folder or hub id of a Qwen3 with its tokenizer")
    given: dict[str, Any] = {
        **section,
        "train_json": str(train_json),
        "valid_json": str(valid_json),
        "data_mode": "conversation",
        "max_rejected_fraction": max_rejected_fraction,
        "output_dir": str(output_dir),
        "resume": True,
        "seed": seed,
    }
    groups: list[Any] = [
        group(**{field.name: given[field.name] for field in dataclasses.fields(group)}) for group in _GROUPS
    ]
    return Settings(*groups)


def flag_defaults() -> dict[str, Any]:
    """The defaults of the flags that the section holds; None for one that has none."""
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for group in _GROUPS
        for field in dataclasses.fields(group)
        if field.name not in GIVEN
    }


def as_flags(settings: Settings) -> list[str]:
    """The command line that gives these settings."""
    return [
        f"--{name}={value}"
        for group in dataclasses.asdict(settings).values()
        for name, value in group.items()
        if value is not None
    ]
