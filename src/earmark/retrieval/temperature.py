"""What scores are divided by before a softmax: a number, or learned from one."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import nn

_LEAST = 0.01  # below it, CLIP found, training is unstable


class Temperature(nn.Module):
    """`value`, always, or where it is `learned`, first. Learned on a logarithmic scale, and never below 0.01.

    After Radford et al. (2021), "Learning transferable visual models from natural language supervision",
    https://arxiv.org/abs/2103.00020.
    """

    def __init__(self, value: float, learned: bool = False):
        super().__init__()
        self.value = value
        self.log = nn.Parameter(torch.tensor(math.log(value))) if learned else None

    @classmethod
    def of(cls, value: float | Self) -> Self:
        """`value` as it is, or a number that stays."""
        return value if isinstance(value, cls) else cls(value)  # type: ignore[arg-type]

    def forward(self) -> float | torch.Tensor:
        if self.log is None:
            return self.value
        with torch.no_grad():  # the number itself, not what is made of it: below a bound there is no way back
            self.log.clamp_(min=math.log(_LEAST))
        return self.log.exp()
