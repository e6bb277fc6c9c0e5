"""Projections in the type of the checkpoint: cuBLAS for many rows, a kernel of our own for one.

With a single row a product is bounded by reading its weight. cuBLAS, whose tiles are made for more, then takes 13 µs
for 4,096 x 4,096 numbers of bfloat16 on an H200 and our kernel 9; see docs/gpu.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.models.weights import Linear


@dataclass(frozen=True, slots=True)
class GpuLinear(Linear):
    """See `Linear`."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` to `[rows, out]`."""
        return project(states, self.weight, self.bias)


def project(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`states` `[rows, in]` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`; gives `[rows, out]`."""
    if not is_one_row(states):
        return torch.nn.functional.linear(states, weight, bias)
    from argosy_services.engine.torch_engine.gpu.triton import one_row

    return one_row.multiply(states, weight, bias)


def is_one_row(states: torch.Tensor) -> bool:
    """Whether the kernel takes a product with `states` `[rows, in]`."""
    return states.device.type == "cuda" and len(states) == 1
