"""Adapters' low-rank products, for rows that each have an adapter of their own, or none (idea: Punica, Chen et al.,
2023)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from argosy_services.engine.torch_engine.gpu.kernels import RANK_TILE, Factors

# Numbers of a factor that its program reads at once: nearly all of most, for a loop waits in every turn.
_IN_TILE = 4096
_OUT_TILE = 128


def add_low_rank(
    states: torch.Tensor, out: torch.Tensor, factors: Factors, slots: torch.Tensor, ranks: torch.Tensor
) -> None:
    """See `kernels.Kernels`."""
    rows, inputs = states.shape
    _, rank, _ = factors.a.shape
    outputs = out.shape[1]
    low = torch.empty(rows, rank, dtype=torch.float32, device=states.device)
    _shrink[(rows, rank)](
        states,
        factors.a,
        low,
        slots,
        ranks,
        states.stride(0),
        factors.a.stride(0),
        inputs,
        rank,
        TILE=min(_IN_TILE, triton.next_power_of_2(inputs)),
    )
    _expand[(rows, triton.cdiv(outputs, _OUT_TILE))](
        low,
        factors.b,
        out,
        slots,
        ranks,
        out.stride(0),
        factors.b.stride(0),
        outputs,
        rank,
        RANK=RANK_TILE,
        TILE=_OUT_TILE,
    )


@triton.jit
def _shrink(
    states,
    a,
    low,
    slots,
    ranks,
    state_stride,
    slot_stride,
    inputs,
    rank,
    TILE: tl.constexpr,
):
    row, factor = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot >= 0:  # noqa: SIM102
        # Not one condition: Triton evaluates both sides of an `and`.
        if factor < tl.load(ranks + slot):
            source = a + slot * slot_stride + factor * inputs
            total = tl.zeros([TILE], tl.float32)
            for at in range(0, inputs, TILE):
                column = at + tl.arange(0, TILE)
                inside = column < inputs
                given = tl.load(states + row * state_stride + column, mask=inside, other=0.0).to(tl.float32)
                total += given * tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
            tl.store(low + row * rank + factor, tl.sum(total, axis=0))


@triton.jit
def _expand(
    low,
    b,
    out,
    slots,
    ranks,
    out_stride,
    slot_stride,
    outputs,
    rank,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        column = tl.program_id(1) * TILE + tl.arange(0, TILE)
        inside = column < outputs
        total = tl.zeros([TILE], tl.float32)
        used = tl.load(ranks + slot)
        for at in range(0, used, RANK):
            factor = at + tl.arange(0, RANK)
            given = tl.load(low + row * rank + factor, mask=factor < used, other=0.0)
            source = b + slot * slot_stride + column[:, None] * rank + factor[None, :]
            weights = tl.load(source, mask=inside[:, None], other=0.0).to(tl.float32)
            total += tl.sum(weights * given[None, :], axis=1)
        target = out + row * out_stride + column
        base = tl.load(target, mask=inside, other=0.0).to(tl.float32)
        tl.store(target, (base + total).to(out.dtype.element_ty), mask=inside)
