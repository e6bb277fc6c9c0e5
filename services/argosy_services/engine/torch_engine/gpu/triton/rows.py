"""What a decoder does to each row between two products: norms, rotations and gates.

In torch's operators these are some thirty launches a layer, which on a GPU take as long as reading the layer's weights
does for a small batch. Everything is computed in float32 and rounded less often than `models/decoder.py` rounds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from argosy_services.engine.torch_engine.config import Activation
from argosy_services.engine.torch_engine.gpu import fp8

_GATE_TILE = 1024
_SQRT_2_OVER_PI = 0.7978845608028654


@triton.jit
def tanh(values):
    """The hyperbolic tangent, which Triton's language lacks."""
    return 2.0 * tl.sigmoid(2.0 * values) - 1.0


def norm(states: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool) -> torch.Tensor:
    """RMSNorm of `[tokens, size]`, or of `[tokens, heads, size]` that is a part of a fused projection's rows; see
    `Decoder._norm` for `offset`."""
    size = states.shape[-1]
    parts = states[:, None] if states.dim() == 2 else states
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    _norm[parts.shape[:2]](
        parts,
        weight,
        out,
        eps,
        parts.stride(0),
        parts.stride(1),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        OFFSET=offset,
    )
    return out


@triton.jit
def _norm(
    states,
    weight,
    out,
    eps,
    row_stride,
    part_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    OFFSET: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    values = tl.load(states + row * row_stride + part * part_stride + column, mask=inside, other=0.0).to(tl.float32)
    values = values * tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if not OFFSET:
        values = values.to(out.dtype.element_ty).to(tl.float32)
    place = (row * tl.num_programs(1) + part) * SIZE + column
    tl.store(out + place, (values * factor).to(out.dtype.element_ty), mask=inside)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns `states` `[tokens, heads, head_dim]`, as `models.rope.rotate` does; `cos` and `sin` are
    `[tokens, 1, head_dim]`."""
    tokens, heads, size = states.shape
    out = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    _rotate[(tokens, heads)](
        states,
        cos,
        sin,
        out,
        states.stride(0),
        states.stride(1),
        HALF=size // 2,
        PADDED=triton.next_power_of_2(size // 2),
    )
    return out


@triton.jit
def _rotate(states, cos, sin, out, row_stride, head_stride, HALF: tl.constexpr, PADDED: tl.constexpr):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, PADDED)
    inside = column < HALF
    source = states + row * row_stride + head * head_stride + column
    low = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    # Both halves of the tables are alike.
    turn = row * 2 * HALF + column
    across = tl.load(cos + turn, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(sin + turn, mask=inside, other=0.0).to(tl.float32)
    target = out + (row * tl.num_programs(1) + head) * 2 * HALF + column
    tl.store(target, (low * across - high * up).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (high * across + low * up).to(out.dtype.element_ty), mask=inside)


def gated(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """`activation(gate) * up`, each `[tokens, size]` and perhaps a part of a longer row."""
    tokens, size = gate.shape
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    _gated[(tokens, triton.cdiv(size, _GATE_TILE))](
        gate,
        up,
        out,
        gate.stride(0),
        up.stride(0),
        size,
        SILU=activation == "silu",
        ROOT=_SQRT_2_OVER_PI,
        TILE=_GATE_TILE,
    )
    return out


@triton.jit
def _gated(
    gate,
    up,
    out,
    gate_stride,
    up_stride,
    size,
    SILU: tl.constexpr,
    ROOT: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < size
    opened = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        opened = opened * tl.sigmoid(opened)
    else:
        opened = 0.5 * opened * (1.0 + tanh(ROOT * (opened + 0.044715 * opened * opened * opened)))
    opened = opened.to(out.dtype.element_ty).to(tl.float32)
    values = opened * tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + column, values.to(out.dtype.element_ty), mask=inside)


def quantize(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `states` `[rows, size]` in e4m3 and what their numbers count; see `fp8.quantize`."""
    rows, size = states.shape
    out = torch.empty(states.shape, dtype=fp8.FORMAT, device=states.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=states.device)
    _quantize[(rows,)](
        states,
        out,
        scales,
        states.stride(0),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        LARGEST=fp8.LARGEST,
        LEAST=fp8.LEAST,
        num_warps=8,
    )
    return out, scales


@triton.jit
def _quantize(
    states,
    out,
    scales,
    row_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    values = tl.load(states + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values), axis=0), LEAST) / LARGEST
    narrow = tl.clamp(values / scale, -LARGEST, LARGEST)
    tl.store(out + row * SIZE + column, narrow.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)
