"""From encoder states to what stands in for a token's embedding."""

from __future__ import annotations

import torch
from torch import nn


class AudioProjector(nn.Module):
    """Puts `stack` neighbouring states side by side and maps them to the language model's width.

    `linear` is one layer, `mlp` two of the output's width with GELU between. Weights are Xavier's times `scale`: so the
    language model first sees faint audio, not noise as loud as its own embeddings. The projector's own float type is
    that of its weights; what comes in is cast to it.
    """

    def __init__(self, dim: int, hidden_size: int, *, kind: str, stack: int, scale: float):
        super().__init__()
        self.stack = stack
        width = dim * stack
        layers: list[nn.Module] = [nn.Linear(width, hidden_size)]
        if kind == "mlp":
            layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, gain=scale)
                nn.init.zeros_(layer.bias)

    @property
    def weight(self) -> torch.Tensor:
        """The first layer's: tells device and type."""
        return self.layers[0].weight  # type: ignore[return-value]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """audio[B, ceil(T / stack), hidden] of states[B, T, dim], which are zero beyond a clip's end."""
        # Not in autocast's half precision: a projector that is float32 computes in it.
        with torch.autocast(self.weight.device.type, enabled=False):
            states = states.to(self.weight.device, self.weight.dtype)
            states = nn.functional.pad(states, (0, 0, 0, -states.shape[1] % self.stack))
            return self.layers(states.unflatten(1, (-1, self.stack)).flatten(2))
