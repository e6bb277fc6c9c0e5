"""The linear layers of the encoder, in the layout and the type that the processor multiplies fastest."""

from __future__ import annotations

import torch
from torch.nn import functional

# Rows of a full batch, for which oneDNN chooses the layout; any other number of rows works too.
_ROWS = 1024


class Projection:
    """A projection: states [rows, in] to [rows, out], in the type of `weight`. `weight` [out, in], `bias` [out].

    oneDNN reorders the weights once, which a plain product does in every call, and fuses what follows the product.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._fused = _fuses(weight.dtype)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS) if self._fused else weight
        self._bias = bias

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """The projection."""
        if not self._fused:
            return functional.linear(states, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")

    def gelu(self, states: torch.Tensor) -> torch.Tensor:
        """The exact GELU (Hendrycks and Gimpel, 2016) of the projection."""
        if not self._fused:
            return functional.gelu(functional.linear(states, self._weight, self._bias))
        return torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "gelu", [], "none")

    def added(self, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The projection plus `residual` [rows, out]."""
        if not self._fused:
            return functional.linear(states, self._weight, self._bias) + residual
        return torch.ops.mkldnn._linear_pointwise.binary(states, residual, self._weight, self._bias, "add")


def _fuses(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes with a type on this processor: with bfloat16 it refuses where AVX-512 is missing."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is not torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
