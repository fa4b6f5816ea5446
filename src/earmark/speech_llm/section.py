"""The configuration's section `speech_llm`: its keys are the flags of `settings.py`, with the same defaults.

What only qwen2_audio has stands in a part of its own, `speech_llm.qwen2_audio`; all else once, for both backends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from earmark.errors import ConfigError
from earmark.speech_llm.settings import (
    ARCHITECTURES,
    BASES,
    Architecture,
    DataSettings,
    ModelSettings,
    Settings,
    StabilitySettings,
    TrainSettings,
    unread,
)

_GROUPS = (ModelSettings, DataSettings, TrainSettings, StabilitySettings)
# What the workflow itself knows, so that the section does not say it again.
GIVEN = frozenset(
    {
        "architecture",
        "train_json",
        "valid_json",
        "data_mode",
        "max_rejected_fraction",
        "output_dir",
        "resume",
        "seed",
        "checkpoint_minutes",
    }
)


def backend_flags(section: Mapping[str, Any], backend: Architecture) -> dict[str, Any]:
    """The flags that the training of a backend reads, of those in the section and, for qwen2_audio, its own part."""
    flags = {**section, **section["qwen2_audio"]}
    silent = unread(backend, method=flags["method"], use_lora=flags["use_lora"])
    return {name: flags[name] for name in flag_defaults() if name not in silent}


def check_section(section: Mapping[str, Any], backends: Iterable[str]) -> None:
    """ConfigError if the section sets a flag that none of the named backends reads, or what one could not train with.

    Both with the reason. Nothing is looked for on disk: this runs before the workflow's first job.
    """
    named = [backend for backend in ARCHITECTURES if backend in backends]
    read = {name for backend in named for name in backend_flags(section, backend)}
    own = section["qwen2_audio"]
    for name, default in flag_defaults().items() if named else ():
        value = own[name] if name in own else section[name]
        if name in read or name in BASES or value == default or (name in own and "qwen2_audio" not in named):
            continue
        reason = unread(named[0], method=own["method"], use_lora=section["use_lora"])[name]
        part = "qwen2_audio." if name in own else ""
        raise ConfigError(f"speech_llm.{part}{name} is {value}, but {reason}; leave it out")
    nowhere = Path()
    for backend in named:
        flags = backend_flags(section, backend)
        try:
            settings_of(
                flags, backend, train_json=nowhere, valid_json=nowhere, output_dir=nowhere, seed=0,
                max_rejected_fraction=0.0,
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"speech_llm, as {backend} reads it: {error}") from None


def settings_of(
    flags: Mapping[str, Any],
    backend: Architecture,
    *,
    train_json: Path,
    valid_json: Path,
    output_dir: Path,
    seed: int,
    max_rejected_fraction: float,
    checkpoint_minutes: float = 15.0,
) -> Settings:
    """The settings of a training on the workflow's exports; `flags` are those of `backend_flags`.

    ConfigError where values do not go together.
    """
    given: dict[str, Any] = {
        **flags,
        "architecture": backend,
        "train_json": str(train_json),
        "valid_json": str(valid_json),
        "data_mode": "conversation",
        "max_rejected_fraction": max_rejected_fraction,
        "output_dir": str(output_dir),
        "resume": True,
        "seed": seed,
        "checkpoint_minutes": checkpoint_minutes,
    }
    groups: list[Any] = [
        group(**{field.name: given[field.name] for field in dataclasses.fields(group) if field.name in given})
        for group in _GROUPS
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
