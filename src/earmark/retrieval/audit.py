"""Which parts of a model train: written beside it, and checked before the first step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from earmark.errors import EarmarkError


@dataclass(frozen=True)
class ModuleAudit:
    """Parameters of one part of a model."""

    parameters: int
    trainable: int
    dtypes: list[str]


def audit_modules(
    parts: Mapping[str, nn.Module], trained: Collection[str], partly: Mapping[str, Collection[str]] | None = None
) -> dict[str, dict[str, object]]:
    """Count each part's parameters. EarmarkError if one trains that must not, does not that must, or not in float32.

    Parts in `trained` train whole, of those in `partly` the parameters named there, and all others are frozen.
    """
    report: dict[str, dict[str, object]] = {}
    partly = partly or {}
    for name, part in parts.items():
        named = dict(part.named_parameters())
        parameters = list(named.values())
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if trainable and name not in trained and name not in partly:
            raise EarmarkError(f"{name} is frozen by design, but {len(trainable)} of its parameters would train")
        if len(trainable) != len(parameters) and name in trained:
            raise EarmarkError(f"{name} must train, but {len(parameters) - len(trainable)} parameters are frozen")
        if name in partly:
            wrong = {key for key, parameter in named.items() if parameter.requires_grad} ^ set(partly[name])
            if wrong:
                raise EarmarkError(f"{name}: {len(wrong)} parameters train or not by mistake, such as {min(wrong)}")
        if any(parameter.dtype != torch.float32 for parameter in trainable):
            raise EarmarkError(f"{name} would be optimised in less than float32, where AdamW's epsilon vanishes")
        report[name] = asdict(
            ModuleAudit(
                sum(parameter.numel() for parameter in parameters),
                sum(parameter.numel() for parameter in trainable),
                sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters}),
            )
        )
    return report
