"""Matrix products of 8-bit integers: a linear layer of a frozen encoder, its weights and what it is given rounded.

A row of weights is whole numbers from -127 to 127 times a scale of its own, and so is a row of the input, a frame: no
frame depends on its batch mates, and nothing has to be calibrated. What GELU gave is never below -0.17 and is counted
from there, in 255 steps. As Dettmers et al. (2022), "LLM.int8()", https://arxiv.org/abs/2208.07339, have it, without
their outliers in 16 bits. A processor with AVX-512 VNNI multiplies four times as many of these numbers as floats;
elsewhere the same whole numbers are multiplied as floats, for the same result up to rounding, but slower.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from earmark.retrieval.machine_code import compiled
from earmark.retrieval.packed_whisper import ROWS

_GELU_LEAST = 0.17  # GELU is nowhere below minus this
_TINY = 1e-12  # what a row of zeros is scaled by


class Int8Product:
    """activation(x[..., in] @ weight[out, in].T + bias) + other, of rounded numbers, for inference.

    `activation` is "none" or "gelu". `after_gelu`: x is what GELU gave, or zeros.
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none", after_gelu: bool = False
    ):
        weight = weight.float()
        self._scales = weight.abs().amax(dim=1).clamp(min=_TINY) / 127
        whole = (weight / self._scales[:, None]).round()
        # The input's rows are counted from -shift, in steps that begin at `zero`.
        self._shift, self._steps, self._zero = (_GELU_LEAST, 255, 0) if after_gelu else (0.0, 127, 128)
        bias = weight.new_zeros(len(weight)) if bias is None else bias.float()
        self._bias = bias - self._shift * whole.sum(dim=1) * self._scales
        self._gelu = activation == "gelu"
        self._integers = can_multiply_integers(weight.device)
        if self._integers:
            self._zeros = torch.zeros(len(weight), dtype=torch.int32)
            self._weight = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), [ROWS, weight.shape[1]])
        else:
            self._weight = whole

    def __call__(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if not self._integers:
            whole, scales = self._rounded(x)
            product = nn.functional.linear(whole.float() - self._zero, self._weight) * self._scales
        else:
            whole, scales = self._compiled_rounded(x)
            product = torch.ops.onednn.qlinear_pointwise(
                whole, 1.0, self._zero, self._weight, self._scales, self._zeros, None,
                1.0, 0, torch.float32, "none", [], "none",
            )  # fmt: skip
        result = torch.addcmul(self._bias, product, scales)
        if self._gelu:
            result = nn.functional.gelu(result)
        return result if other is None else result.add_(other)

    def _rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x[..., in] as whole numbers, uint8, and what a step is worth in each row [..., 1]."""
        most = (x.abs().amax(dim=-1, keepdim=True) + self._shift).clamp(min=_TINY)
        whole = ((x + self._shift) * (torch.full_like(most, self._steps) / most) + (self._zero + 0.5)).to(torch.uint8)
        return whole, most / self._steps

    def _compiled_rounded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.ascontiguousarray(x.numpy(), dtype=np.float32).reshape(-1, x.shape[-1])
        whole, scales = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
        shift, steps, zero = map(np.float32, (self._shift, self._steps, self._zero))
        _round(rows, rows.view(np.int32), shift, steps, zero, whole, scales)
        return torch.from_numpy(whole).view(x.shape), torch.from_numpy(scales).view(*x.shape[:-1], 1)


def can_multiply_integers(device: torch.device) -> bool:
    """Whether the fast path runs here. Without VNNI, oneDNN would add up such products in 16 bits, and overflow."""
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and torch.cpu._is_vnni_supported()
        # Not public, but what torch.compile makes of a quantised layer; the exact pin on torch keeps them as they are.
        and hasattr(torch.ops.onednn, "qlinear_prepack")
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )


@compiled("void(f4[:,::1], i4[:,::1], f4, f4, f4, u1[:,::1], f4[::1])")
def _round(
    rows: np.ndarray,
    bits: np.ndarray,
    shift: float,
    steps: float,
    zero: float,
    whole: np.ndarray,
    scales: np.ndarray,
) -> None:
    """`Int8Product._rounded`, of the same float32 operations. `bits` are the rows' own."""
    most_bits = scales.view(np.int32)
    offset = zero + np.float32(0.5)
    for row in range(len(rows)):
        # Without their signs floats are ordered as their bits are, and the largest integer is found many at a time.
        largest = np.int32(0)
        for column in range(rows.shape[1]):
            largest = max(largest, bits[row, column] & np.int32(0x7FFFFFFF))
        most_bits[row] = largest
        most = max(scales[row] + shift, np.float32(_TINY))
        if not most < np.inf:  # not a number, and neither is what comes of it
            scales[row] = np.nan
            whole[row] = 0
            continue
        factor = steps / most
        scales[row] = most / steps
        for column in range(rows.shape[1]):
            whole[row, column] = np.uint8(np.int32((rows[row, column] + shift) * factor + offset))
