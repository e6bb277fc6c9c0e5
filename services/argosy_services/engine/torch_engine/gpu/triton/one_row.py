"""The product of a single row, which takes as long as reading the weight does.

A program reads a few rows of the weight, piece by piece, and sums up in registers: nothing is shared and nothing is
waited for, so that the memory always has something to do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Bytes that a program reads at once, and how many of them from one row of the weight; rows of more numbers than `_LONG`
# are read in shorter pieces, of more rows. Measured on an H200.
_BYTES = 8192
_ROW_BYTES = 4096
_LONG = 8192
_LONG_ROW_BYTES = 1024
# Programs that fill the device, for small weights.
_PROGRAMS = 512
# Pieces of fewer numbers cost more than reading beyond the row's end with a mask.
_LEAST = 512


def multiply(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """`states` `[1, in]` times the transpose of `weight` `[out, in]`, whose numbers count `scales` float32 `[out, 1]`,
    plus `bias` `[out]`; gives `[1, out]`."""
    outputs, inputs = weight.shape
    out = torch.empty(1, outputs, dtype=states.dtype, device=states.device)
    most = (_ROW_BYTES if inputs <= _LONG else _LONG_ROW_BYTES) // weight.itemsize
    piece = min(most, triton.next_power_of_2(inputs))
    # A mask costs a tenth.
    if (whole := inputs & -inputs) >= _LEAST:
        piece = min(piece, whole)
    each = min(_BYTES // (piece * weight.itemsize), triton.next_power_of_2(outputs // _PROGRAMS))
    each = max(1, min(each, outputs & -outputs))
    _multiply[(outputs // each,)](
        states,
        weight,
        weight if bias is None else bias,
        weight if scales is None else scales,
        out,
        INPUTS=inputs,
        BIASED=bias is not None,
        SCALED=scales is not None,
        MASKED=inputs % piece != 0,
        EACH=each,
        PIECE=piece,
    )
    return out


@triton.jit
def _multiply(
    states,
    weight,
    bias,
    scales,
    out,
    INPUTS: tl.constexpr,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    MASKED: tl.constexpr,
    EACH: tl.constexpr,
    PIECE: tl.constexpr,
):
    output = tl.program_id(0) * EACH + tl.arange(0, EACH)
    column = tl.arange(0, PIECE)
    source = weight + output[:, None].to(tl.int64) * INPUTS + column[None, :]
    total = tl.zeros([EACH, PIECE], tl.float32)
    for at in range(0, INPUTS, PIECE):
        if MASKED:
            inside = at + column < INPUTS
            read = tl.load(source + at, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
            given = tl.load(states + at + column, mask=inside, other=0.0)
        else:
            read = tl.load(source + at, eviction_policy="evict_first")
            given = tl.load(states + at + column)
        total += read.to(tl.float32) * given.to(tl.float32)[None, :]
    sums = tl.sum(total, axis=1)
    if SCALED:
        sums *= tl.load(scales + output)
    if BIASED:
        sums += tl.load(bias + output).to(tl.float32)
    tl.store(out + output, sums.to(out.dtype.element_ty))
