"""Whisper's frozen encoder on a CPU, its weights packed once in the layout that oneDNN multiplies fastest.

Three quarters of hearing a short clip are matrix products, some hundred rows each: too few to pay for laying out the
weights anew at every call, as PyTorch's linear layer does. A convolution is such a product too, of the three frames
that it sees, so nothing is turned between channels and time; activations and residuals are added on the way out. The
states are those of `whisper.encode_states` up to rounding. The packed weights lie in memory beside the encoder's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.models.whisper.modeling_whisper import WhisperEncoder

_ROWS = 128  # what oneDNN is told to expect; others are multiplied as well
_KERNEL, _PADDING = 3, 1  # of both convolutions


def can_be_packed(encoder: WhisperEncoder) -> bool:
    """Whether this machine, and what the encoder is and where, allow it."""
    attentions = [layer.self_attn for layer in encoder.layers]
    linear = [getattr(attention, f"{name}_proj") for attention in attentions for name in ("q", "k", "v", "out")]
    linear += [part for layer in encoder.layers for part in (layer.fc1, layer.fc2)]
    return (
        # Exactly these: adapters around a layer, or another kind of it, do more than multiply by its weights.
        {type(part) for part in linear} == {nn.Linear}
        and type(encoder.conv1) is type(encoder.conv2) is nn.Conv1d
        # Of tensors made in inference mode it is not known when they were written to.
        and all(
            weight.device.type == "cpu" and weight.dtype == torch.float32 and not weight.is_inference()
            for weight in encoder.parameters()
        )
        and not torch.is_autocast_enabled("cpu")
        and not encoder.training
        and encoder.config.activation_function == "gelu"
        and torch.backends.mkldnn.is_available()
        # Not public, but what torch.compile makes of a linear layer; the exact pin on torch keeps them as they are.
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class PackedWhisper:
    """A copy of the first `layers` layers of an encoder, for inference. It does not follow changes of the weights."""

    @torch.no_grad()
    def __init__(self, encoder: WhisperEncoder, layers: int):
        self._positions = encoder.embed_positions.weight
        self._stem = [_packed_convolution(encoder.conv1), _packed_convolution(encoder.conv2)]
        self._layers = [_Layer(layer) for layer in encoder.layers[:layers]]
        self._norm: nn.Module = encoder.layer_norm

    def states(self, mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """As `whisper.encode_states` gives them: states[B, T, dim] of mel[B, bins, M] and lengths[B]."""
        longest = int(lengths.max())
        first, second = self._stem
        stem = second(_windows(first(_windows(mel.transpose(1, 2), stride=1)), stride=2))
        states = stem[:, :longest] + self._positions[:longest]
        real = torch.arange(longest) < lengths[:, None]  # [B, T]
        mask = None if real.all() else real[:, None, None, :].expand(-1, 1, longest, -1)
        for layer in self._layers:
            states = layer(states, mask)
        states = self._norm(states)
        return states if mask is None else states * real[:, :, None]


class _Layer:
    def __init__(self, layer: Any):
        attention = layer.self_attn
        self._heads, self._scale = attention.num_heads, attention.scaling
        self._queries, self._keys, self._values = map(_packed, (attention.q_proj, attention.k_proj, attention.v_proj))
        self._attended = _packed_sum(attention.out_proj)
        self._attention_norm, self._norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self._wide, self._narrow = _packed(layer.fc1, "gelu"), _packed_sum(layer.fc2)

    def __call__(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        normed = self._attention_norm(states)
        queries, keys, values = (
            project(normed).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for project in (self._queries, self._keys, self._values)
        )
        found = nn.functional.scaled_dot_product_attention(queries, keys, values, mask, scale=self._scale)
        states = self._attended(found.transpose(1, 2).flatten(2), states)
        return self._narrow(self._wide(self._norm(states)), states)


def _packed(linear: Any, activation: str = "none") -> Any:
    """A function of x[..., in]."""
    return _product(linear.weight, linear.bias, activation)


def _packed_convolution(convolution: Any) -> Any:
    """A function of `_windows`, with Whisper's activation behind it."""
    return _product(convolution.weight.permute(0, 2, 1).flatten(1).contiguous(), convolution.bias, "gelu")


def _packed_sum(linear: Any) -> Any:
    """A function of x[..., in] and of what is added to the product."""
    ready = torch.ops.mkldnn._reorder_linear_weight(linear.weight, _ROWS)
    return partial(_sum, ready, linear.bias)


def _product(weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> Any:
    ready = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    # "none" as the last argument: of GELU's forms the exact one.
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, ready, bias, activation, [], "none")


def _sum(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")


def _windows(frames: torch.Tensor, stride: int) -> torch.Tensor:
    """frames[B, T, dim] -> the three around every `stride`th, as [B, T', 3 * dim]; silence beyond both ends."""
    padded = pad(frames, (0, 0, _PADDING, _PADDING)).contiguous()
    count = (padded.shape[1] - _KERNEL) // stride + 1
    shape = (len(padded), count, _KERNEL * padded.shape[2])
    return padded.as_strided(shape, (padded.stride(0), stride * padded.stride(1), 1)).contiguous()
