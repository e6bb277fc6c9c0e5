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
from argosy_services.engine.torch_engine.gpu.kernels import Blocks, Cache
from argosy_services.engine.torch_engine.models.rope import Turn

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
    place = (row * tl.num_programs(1) + part) * SIZE
    _store_norm(values, weight, out + place, eps, SIZE, PADDED, OFFSET)


@triton.jit
def _store_norm(values, weight, out, eps, SIZE: tl.constexpr, PADDED: tl.constexpr, OFFSET: tl.constexpr):
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    values = values * tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    if not OFFSET:
        values = values.to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + column, (values * factor).to(out.dtype.element_ty), mask=inside)


def add_norm(
    states: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.Kernels`; both `[tokens, size]` without gaps."""
    tokens, size = states.shape
    total, normed = torch.empty_like(states), torch.empty_like(states)
    _add_norm[(tokens,)](
        states, added, weight, total, normed, eps, SIZE=size, PADDED=triton.next_power_of_2(size), OFFSET=offset
    )
    return total, normed


@triton.jit
def _add_norm(
    states, added, weight, total, normed, eps, SIZE: tl.constexpr, PADDED: tl.constexpr, OFFSET: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    place = row * SIZE + column
    values = tl.load(states + place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
    rounded = values.to(total.dtype.element_ty)
    tl.store(total + place, rounded, mask=inside)
    _store_norm(rounded.to(tl.float32), weight, normed + row * SIZE, eps, SIZE, PADDED, OFFSET)


def place(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    turn: Turn | None,
    cache: Cache,
    slots: torch.Tensor,
) -> torch.Tensor:
    """See `kernels.Kernels`; all three may be parts of a fused projection's rows."""
    tokens, heads, size = query.shape
    kv_heads = key.shape[1]
    out = query if turn is None else torch.empty(query.shape, dtype=query.dtype, device=query.device)
    # Without a turn the queries are left where they are.
    cos, sin, turned = (query, query, 0) if turn is None else (*turn, heads)
    _place[(tokens, turned + 2 * kv_heads)](
        query,
        key,
        value,
        cos,
        sin,
        slots,
        out,
        cache.keys,
        cache.values,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        cache.keys.stride(0),
        TURNED=turned,
        KV_HEADS=kv_heads,
        HALF=size // 2,
        PADDED=triton.next_power_of_2(size // 2),
    )
    return out


@triton.jit
def _place(
    query,
    key,
    value,
    cos,
    sin,
    slots,
    out,
    keys,
    values,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    cache_stride,
    TURNED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    cos += row * 2 * HALF
    sin += row * 2 * HALF
    stored = tl.load(slots + row) * 2 * HALF
    if part < TURNED:
        _turn(
            query + row * query_row + part * query_head, out + (row * TURNED + part) * 2 * HALF, cos, sin, HALF, PADDED
        )
    elif part < TURNED + KV_HEADS:
        head = part - TURNED
        source = key + row * key_row + head * key_head
        if TURNED > 0:
            _turn(source, keys + head * cache_stride + stored, cos, sin, HALF, PADDED)
        else:
            _copy(source, keys + head * cache_stride + stored, HALF, PADDED)
    else:
        head = part - TURNED - KV_HEADS
        _copy(value + row * value_row + head * value_head, values + head * cache_stride + stored, HALF, PADDED)


@triton.jit
def _turn(source, target, cos, sin, HALF: tl.constexpr, PADDED: tl.constexpr):
    """One head's numbers, turned; both halves of the tables are alike."""
    column = tl.arange(0, PADDED)
    inside = column < HALF
    low = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + HALF + column, mask=inside, other=0.0).to(tl.float32)
    across = tl.load(cos + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(sin + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + column, (low * across - high * up).to(target.dtype.element_ty), mask=inside)
    tl.store(target + HALF + column, (high * across + low * up).to(target.dtype.element_ty), mask=inside)


@triton.jit
def _copy(source, target, HALF: tl.constexpr, PADDED: tl.constexpr):
    column = tl.arange(0, PADDED)
    inside = column < HALF
    tl.store(target + column, tl.load(source + column, mask=inside, other=0.0), mask=inside)
    tl.store(target + HALF + column, tl.load(source + HALF + column, mask=inside, other=0.0), mask=inside)


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


_ADVANCE_TILE = 128


def advance(numbers: torch.Tensor, tables: torch.Tensor, likeliest: torch.Tensor, blocks: Blocks) -> None:
    """See `kernels.Kernels`."""
    rows, width = tables.shape
    _advance[(triton.cdiv(rows, _ADVANCE_TILE),)](
        numbers,
        tables,
        likeliest,
        numbers.stride(0),
        tables.stride(0),
        rows,
        width,
        blocks.scratch,
        BLOCK=blocks.tokens,
        TILE=_ADVANCE_TILE,
    )


@triton.jit
def _advance(
    numbers, tables, likeliest, stride, table_stride, rows, width, scratch, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = row < rows
    table = tables + row * table_stride
    moves = there & (tl.load(table, mask=there, other=0) != scratch)
    position = tl.load(numbers + stride + row, mask=there, other=0) + 1
    # Beyond a table's end nothing is asked for, but the inputs are made all the same.
    block = tl.load(table + tl.minimum(position // BLOCK, width - 1), mask=there, other=0).to(tl.int64)
    tl.store(numbers + row, tl.load(likeliest + row, mask=there, other=0), mask=moves)
    tl.store(numbers + stride + row, position, mask=moves)
    tl.store(numbers + 2 * stride + row, block * BLOCK + position % BLOCK, mask=moves)
