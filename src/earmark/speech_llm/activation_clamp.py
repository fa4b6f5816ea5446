"""Bounds the normalised states that the first q_proj reads.

They come out of a RMSNorm: a loud projector does not make them louder, but the norm's own weights, or a few channels
that carry most of a state, may. Keys, values and later layers are not bounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from earmark.errors import ConfigError


def clamp_first_q_proj(model: nn.Module, bound: float) -> RemovableHandle:
    """Clamp the input of the first module called q_proj to [-bound, bound]; NaN stays NaN. Returns what undoes it."""
    for name, module in model.named_modules():
        if name.endswith("q_proj"):
            return module.register_forward_pre_hook(_Clamp(bound))
    raise ConfigError("clamp_q_proj_input: the language model has no q_proj; leave the setting out")


class _Clamp:
    def __init__(self, bound: float):
        self.bound = bound

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
        return (inputs[0].clamp(-self.bound, self.bound), *inputs[1:])
