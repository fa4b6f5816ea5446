"""Whisper's frozen encoder with its weights packed once: for a CPU in the layout that oneDNN multiplies fastest.

Three quarters of hearing a short clip are matrix products, some hundred rows each: too few to pay for laying out the
weights anew at every call, as PyTorch's linear layer does. A convolution is such a product too, of the three frames
that it sees, so nothing is turned between channels and time; activations and residuals are added on the way out. The
states are those of `whisper.encode_states` up to rounding, or near them where the products are of 8-bit integers. The
packed weights lie in memory beside the encoder's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.models.whisper.modeling_whisper import WhisperEncoder

ROWS = 128  # what oneDNN is told to expect; others are multiplied as well
_KERNEL, _PADDING = 3, 1  # of both convolutions


def is_plain(encoder: WhisperEncoder) -> bool:
    """Whether an encoder is what its weights say, and they are known to stay so."""
    attentions = [layer.self_attn for layer in encoder.layers]
    linear = [getattr(attention, f"{name}_proj") for attention in attentions for name in ("q", "k", "v", "out")]
    linear += [part for layer in encoder.layers for part in (layer.fc1, layer.fc2)]
    return (
        # Exactly these: adapters around a layer, or another kind of it, do more than multiply by its weights.
        {type(part) for part in linear} == {nn.Linear}
        and type(encoder.conv1) is type(encoder.conv2) is nn.Conv1d
        # Of tensors made in inference mode it is not known when they were written to.
        and all(weight.dtype == torch.float32 and not weight.is_inference() for weight in encoder.parameters())
        and not encoder.training
        and encoder.config.activation_function == "gelu"
    )


def can_be_packed(encoder: WhisperEncoder) -> bool:
    """Whether this machine, and what the encoder is and where, allow it."""
    return (
        is_plain(encoder)
        and {weight.device.type for weight in encoder.parameters()} == {"cpu"}
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        # Not public, but what torch.compile makes of a linear layer; the exact pin on torch keeps them as they are.
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Product(Protocol):
    """activation(x[..., in] @ weight.T + bias) + other."""

    def __call__(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor: ...


class Float32Product:
    """A `Product` of packed weights, as exact as a linear layer. One with an activation adds nothing else."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none", after_gelu: bool = False
    ):
        del after_gelu  # what the input was before is nothing to floats
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self._bias, self._activation = bias, activation

    def __call__(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if other is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, "add")
        # "none" as the last argument: of GELU's forms the exact one.
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, self._activation, [], "none")


class PackedWhisper:
    """A copy of the first `layers` layers of an encoder, for inference. It does not follow changes of the weights.

    `product` makes a `Product` of a weight, a bias, an activation, and whether its input comes from GELU.
    """

    @torch.no_grad()
    def __init__(self, encoder: WhisperEncoder, layers: int, product: Callable[..., Product] = Float32Product):
        self._positions = encoder.embed_positions.weight
        convolutions = (encoder.conv1, False), (encoder.conv2, True)
        self._stem = [
            product(_kernels(convolution), convolution.bias, "gelu", after_gelu)
            for convolution, after_gelu in convolutions
        ]
        self._layers = [_Layer(layer, product) for layer in encoder.layers[:layers]]
        self._norm: nn.Module = encoder.layer_norm

    def states(self, mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """As `whisper.encode_states` gives them: states[B, T, dim] of mel[B, bins, M] and lengths[B]."""
        longest = int(lengths.max())
        first, second = self._stem
        stem = second(_windows(first(_windows(mel.transpose(1, 2), stride=1)), stride=2))
        states = stem[:, :longest] + self._positions[:longest]
        real = torch.arange(longest, device=mel.device) < lengths.to(mel.device)[:, None]  # [B, T]
        mask = None if real.all() else real[:, None, None, :].expand(-1, 1, longest, -1)
        for layer in self._layers:
            states = layer(states, mask)
        states = self._norm(states)
        return states if mask is None else states * real[:, :, None]


class _Layer:
    def __init__(self, layer: Any, product: Callable[..., Product]):
        attention = layer.self_attn
        self._heads, self._scale = attention.num_heads, attention.scaling
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        biases = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
        self._attend = product(torch.cat([part.weight for part in parts]), torch.cat(biases))
        self._attended = product(attention.out_proj.weight, attention.out_proj.bias)
        self._attention_norm, self._norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self._wide = product(layer.fc1.weight, layer.fc1.bias, "gelu")
        self._narrow = product(layer.fc2.weight, layer.fc2.bias, after_gelu=True)

    def __call__(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        attend = self._attend(self._attention_norm(states)).unflatten(-1, (3, self._heads, -1))
        queries, keys, values = attend.transpose(1, 3).unbind(dim=2)  # [B, heads, T, dim of a head]
        found = nn.functional.scaled_dot_product_attention(queries, keys, values, mask, scale=self._scale)
        states = self._attended(found.transpose(1, 2).flatten(2), states)
        return self._narrow(self._wide(self._norm(states)), states)


def _kernels(convolution: Any) -> torch.Tensor:
    """A convolution as the weight[out, 3 * in] that multiplies `_windows`."""
    return convolution.weight.permute(0, 2, 1).flatten(1).contiguous()


def _windows(frames: torch.Tensor, stride: int) -> torch.Tensor:
    """frames[B, T, dim] -> the three around every `stride`th, as [B, T', 3 * dim]; silence beyond both ends."""
    padded = pad(frames, (0, 0, _PADDING, _PADDING)).contiguous()
    count = (padded.shape[1] - _KERNEL) // stride + 1
    shape = (len(padded), count, _KERNEL * padded.shape[2])
    return padded.as_strided(shape, (padded.stride(0), stride * padded.stride(1), 1)).contiguous()
