"""The product of a single row, which takes as long as reading the weight does.

A program reads a few rows of the weight, piece by piece, and sums up in registers: nothing is shared and nothing is
waited for, so that the memory always has something to do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Bytes that a program reads at once, in how many numbers of a row at most; measured on an H200. Of long rows less at
# once: more programs are at work then.
_BYTES = 8192
_PIECE = 2048
_LONG = 8192
_PIECE_OF_LONG = 512
_BYTES_OF_LONG = 2048


def multiply(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """`states` `[1, in]` times the transpose of `weight` `[out, in]`, whose numbers count `scales` float32 `[out, 1]`,
    plus `bias` `[out]`; gives `[1, out]`."""
    outputs, inputs = weight.shape
    out = torch.empty(1, outputs, dtype=states.dtype, device=states.device)
    # Whole pieces of whole rows only, for a mask costs a tenth.
    most, bytes_at_once = (_PIECE, _BYTES) if inputs <= _LONG else (_PIECE_OF_LONG, _BYTES_OF_LONG)
    piece = min(inputs & -inputs, most)
    each = min(outputs & -outputs, max(1, bytes_at_once // (piece * weight.itemsize)))
    _multiply[(outputs // each,)](
        states,
        weight,
        weight if bias is None else bias,
        weight if scales is None else scales,
        out,
        INPUTS=inputs,
        BIASED=bias is not None,
        SCALED=scales is not None,
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
    EACH: tl.constexpr,
    PIECE: tl.constexpr,
):
    output = tl.program_id(0) * EACH + tl.arange(0, EACH)
    column = tl.arange(0, PIECE)
    source = weight + output[:, None].to(tl.int64) * INPUTS + column[None, :]
    total = tl.zeros([EACH, PIECE], tl.float32)
    for at in range(0, INPUTS, PIECE):
        read = tl.load(source + at, eviction_policy="evict_first").to(tl.float32)
        total += read * tl.load(states + at + column).to(tl.float32)[None, :]
    sums = tl.sum(total, axis=1)
    if SCALED:
        sums *= tl.load(scales + output)
    if BIASED:
        sums += tl.load(bias + output).to(tl.float32)
    tl.store(out + output, sums.to(out.dtype.element_ty))
