"""Projections in FP8: weights with a scale for each output, inputs with a scale for each row.

Both are e4m3 (Micikevicius et al., 2022); products are summed in float32. The embeddings, the
head, norms and adapters keep their type.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from argosy_services.engine.torch_engine.config import UnsupportedModelError
from argosy_services.engine.torch_engine.gpu.linear import is_one_row
from argosy_services.engine.torch_engine.models.weights import Linear

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max
# Numbers of a row below it become zeros.
LEAST = 1e-10
# Compute capability from which on tensor cores multiply FP8: Ada Lovelace and Hopper.
_CAPABILITY = (8, 9)
# The products take rows of whole 16 bytes.
_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Fp8Linear(Linear):
    """A projection whose `weight` `[out, in]` is e4m3 and counts `scales` float32 `[out, 1]`."""

    scales: torch.Tensor = field(kw_only=True)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """bfloat16 `[rows, in]` to `[rows, out]`. A single row is not rounded: what it takes is to read the weight."""
        if is_one_row(states):
            from argosy_services.engine.torch_engine.gpu.triton import one_row

            return one_row.multiply(states, self.weight, self.bias, self.scales)
        narrow, scales = _quantize_states(states)
        out = torch._scaled_mm(  # type: ignore[attr-defined]
            narrow, self.weight.T, scale_a=scales, scale_b=self.scales.T, out_dtype=states.dtype
        )
        return out if self.bias is None else out + self.bias


def fp8_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Fp8Linear:
    """A projection of `weight` `[out, in]`. Raises UnsupportedModelError for sizes that the products do not take."""
    if any(size % _MULTIPLE for size in weight.shape):
        raise UnsupportedModelError(
            f"generation.quantization fp8 needs projections whose sizes are multiples of {_MULTIPLE}, "
            f"this model has one of {weight.shape[0]} x {weight.shape[1]}; use none"
        )
    narrow, scales = quantize(weight)
    return Fp8Linear(narrow, bias, scales=scales)


def quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `values` `[rows, size]` as e4m3, and what their numbers count, float32 `[rows, 1]`."""
    wide = values.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp_min(LEAST) / LARGEST
    # Divided, the largest may come out a little above what e4m3 holds, and would become NaN.
    return (wide / scales).clamp(-LARGEST, LARGEST).to(FORMAT), scales


def _quantize_states(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if states.device.type != "cuda":
        return quantize(states)
    # One launch in place of eight.
    from argosy_services.engine.torch_engine.gpu.triton import rows

    return rows.quantize(states)


def check_device(device: torch.device) -> None:
    """Raises UnsupportedModelError where a device does not multiply FP8."""
    needs = f"generation.quantization fp8 needs a CUDA device of compute capability {'.'.join(map(str, _CAPABILITY))}"
    if device.type != "cuda":
        raise UnsupportedModelError(f"{needs} or higher, generation.device is {device}; use auto or none")
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        raise UnsupportedModelError(f"{needs} or higher, {device} has {capability[0]}.{capability[1]}; use none")
