"""Adapters' low-rank products, for rows that each have an adapter of their own, or none (idea: Punica, Chen et al.,
2023), and for pieces of prompts that have one together.

Modules that multiply the same states are taken together for single rows, where launching takes longer than computing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from argosy_services.engine.torch_engine.gpu.kernels import PIECE_ROWS, RANK_TILE, Factors

# Numbers of a factor that its program reads at once: nearly all of most, for a loop waits in every turn.
_IN_TILE = 4096
_OUT_TILE = 128
_PIECE_IN_TILE = 128
# Query, key and value.
_MOST_MODULES = 3


def add_low_rank(
    states: torch.Tensor, outs: Sequence[torch.Tensor], factors: Sequence[Factors], slots: torch.Tensor
) -> None:
    """See `kernels.Kernels`."""
    rows, inputs = states.shape
    _, rank, _ = factors[0].a.shape
    low = torch.empty(len(outs), rows, rank, dtype=torch.float32, device=states.device)
    # What is missing up to three is never looked at.
    of = [factors[min(index, len(outs) - 1)] for index in range(_MOST_MODULES)]
    to = [outs[min(index, len(outs) - 1)] for index in range(_MOST_MODULES)]
    _shrink[(rows, rank, len(outs))](
        states,
        *(each.a for each in of),
        *(each.ranks for each in of),
        low,
        slots,
        states.stride(0),
        of[0].a.stride(0),
        inputs,
        rank,
        TILE=min(_IN_TILE, triton.next_power_of_2(inputs)),
    )
    _expand[(rows, max(triton.cdiv(out.shape[1], _OUT_TILE) for out in outs), len(outs))](
        low,
        *(each.b for each in of),
        *(each.ranks for each in of),
        *to,
        slots,
        *(out.stride(0) for out in to),
        *(out.shape[1] for out in to),
        of[0].b.stride(0),
        rank,
        RANK=RANK_TILE,
        TILE=_OUT_TILE,
    )


@triton.jit
def _shrink(
    states,
    a_0,
    a_1,
    a_2,
    ranks_0,
    ranks_1,
    ranks_2,
    low,
    slots,
    state_stride,
    slot_stride,
    inputs,
    rank,
    TILE: tl.constexpr,
):
    row, factor, module = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + row)
    if slot >= 0:
        a, ranks = a_0, ranks_0
        if module == 1:
            a, ranks = a_1, ranks_1
        if module == 2:
            a, ranks = a_2, ranks_2
        if factor < tl.load(ranks + slot):
            source = a + slot * slot_stride + factor * inputs
            total = tl.zeros([TILE], tl.float32)
            for at in range(0, inputs, TILE):
                column = at + tl.arange(0, TILE)
                inside = column < inputs
                given = tl.load(states + row * state_stride + column, mask=inside, other=0.0).to(tl.float32)
                total += given * tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
            tl.store(low + (module * tl.num_programs(0) + row) * rank + factor, tl.sum(total, axis=0))


@triton.jit
def _expand(
    low,
    b_0,
    b_1,
    b_2,
    ranks_0,
    ranks_1,
    ranks_2,
    out_0,
    out_1,
    out_2,
    slots,
    stride_0,
    stride_1,
    stride_2,
    outputs_0,
    outputs_1,
    outputs_2,
    slot_stride,
    rank,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    row, module = tl.program_id(0).to(tl.int64), tl.program_id(2)
    slot = tl.load(slots + row)
    if slot >= 0:
        b, ranks, out, stride, outputs = b_0, ranks_0, out_0, stride_0, outputs_0
        if module == 1:
            b, ranks, out, stride, outputs = b_1, ranks_1, out_1, stride_1, outputs_1
        if module == 2:
            b, ranks, out, stride, outputs = b_2, ranks_2, out_2, stride_2, outputs_2
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        inside = column < outputs
        used = tl.load(ranks + slot)
        if (used > 0) & (tl.program_id(1) * TILE < outputs):
            total = tl.zeros([TILE], tl.float32)
            for at in range(0, used, RANK):
                factor = at + tl.arange(0, RANK)
                source = low + (module * tl.num_programs(0) + row) * rank
                given = tl.load(source + factor, mask=factor < used, other=0.0)
                place = b + slot * slot_stride + column[:, None] * rank + factor[None, :]
                weights = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
                total += tl.sum(weights * given[None, :], axis=1)
            target = out + row * stride + column
            base = tl.load(target, mask=inside, other=0.0).to(tl.float32)
            tl.store(target, (base + total).to(out.dtype.element_ty), mask=inside)


def add_low_rank_pieces(
    states: torch.Tensor, outs: Sequence[torch.Tensor], factors: Sequence[Factors], pieces: torch.Tensor
) -> None:
    """See `kernels.Kernels`."""
    rows, inputs = states.shape
    for out, of in zip(outs, factors, strict=True):
        _, rank, _ = of.a.shape
        outputs = out.shape[1]
        low = torch.empty(rows, rank, dtype=states.dtype, device=states.device)
        _shrink_piece[(len(pieces), rank // RANK_TILE)](
            states,
            of.a,
            of.ranks,
            low,
            pieces,
            states.stride(0),
            of.a.stride(0),
            inputs,
            rank,
            ROWS=PIECE_ROWS,
            RANK=RANK_TILE,
            TILE=_PIECE_IN_TILE,
        )
        _expand_piece[(len(pieces), triton.cdiv(outputs, _OUT_TILE))](
            low,
            of.b,
            of.ranks,
            out,
            pieces,
            out.stride(0),
            of.b.stride(0),
            outputs,
            rank,
            ROWS=PIECE_ROWS,
            RANK=RANK_TILE,
            TILE=_OUT_TILE,
        )


@triton.jit
def _shrink_piece(
    states,
    a,
    ranks,
    low,
    pieces,
    state_stride,
    slot_stride,
    inputs,
    rank,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    piece, part = tl.program_id(0), tl.program_id(1)
    count = tl.load(pieces + 3 * piece + 1)
    slot = tl.load(pieces + 3 * piece + 2).to(tl.int64)
    if part * RANK < tl.load(ranks + slot):
        row = tl.load(pieces + 3 * piece).to(tl.int64) + tl.arange(0, ROWS)
        there = tl.arange(0, ROWS) < count
        factor = part * RANK + tl.arange(0, RANK)
        total = tl.zeros([ROWS, RANK], tl.float32)
        for at in range(0, inputs, TILE):
            column = at + tl.arange(0, TILE)
            inside = column < inputs
            given = tl.load(
                states + row[:, None] * state_stride + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            weights = tl.load(
                a + slot * slot_stride + factor[None, :] * inputs + column[:, None], mask=inside[:, None], other=0.0
            )
            total = tl.dot(given, weights, total, input_precision="ieee")
        target = low + row[:, None] * rank + factor[None, :]
        tl.store(target, total.to(low.dtype.element_ty), mask=there[:, None])


@triton.jit
def _expand_piece(
    low,
    b,
    ranks,
    out,
    pieces,
    out_stride,
    slot_stride,
    outputs,
    rank,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    piece = tl.program_id(0)
    count = tl.load(pieces + 3 * piece + 1)
    slot = tl.load(pieces + 3 * piece + 2).to(tl.int64)
    used = tl.load(ranks + slot)
    if used > 0:
        row = tl.load(pieces + 3 * piece).to(tl.int64) + tl.arange(0, ROWS)
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        there = tl.arange(0, ROWS) < count
        inside = column < outputs
        total = tl.zeros([ROWS, TILE], tl.float32)
        for at in range(0, used, RANK):
            factor = at + tl.arange(0, RANK)
            given = tl.load(low + row[:, None] * rank + factor[None, :], mask=there[:, None], other=0.0)
            weights = tl.load(
                b + slot * slot_stride + column[None, :] * rank + factor[:, None], mask=inside[None, :], other=0.0
            )
            total = tl.dot(given, weights, total, input_precision="ieee")
        target = out + row[:, None] * out_stride + column[None, :]
        written = there[:, None] & inside[None, :]
        base = tl.load(target, mask=written, other=0.0).to(tl.float32)
        tl.store(target, (base + total).to(out.dtype.element_ty), mask=written)
