"""What the kernels of the GPU path compute, in torch's operators and as literally as that goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from argosy_services.engine.torch_engine.config import Activation
from argosy_services.engine.torch_engine.gpu.kernels import Blocks, Cache, Factors, Prompts, Scoring
from argosy_services.engine.torch_engine.models.rope import Turn, rotate


class PlainKernels:
    """See `kernels.Kernels`."""

    def norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool) -> torch.Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (wide * weight).to(states.dtype) if offset else weight * wide.to(states.dtype)

    def add_norm(
        self, states: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = states + added
        return total, self.norm(total, weight, eps, offset=offset)

    def place(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        turn: Turn | None,
        cache: Cache,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        if turn is not None:
            query, key = rotate(query, *turn), rotate(key, *turn)
        cache.keys.index_copy_(1, slots, key.transpose(0, 1))
        cache.values.index_copy_(1, slots, value.transpose(0, 1))
        return query

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        functional = torch.nn.functional
        return (functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")) * up

    def attend_decodes(
        self, query: torch.Tensor, cache: Cache, tables: torch.Tensor, positions: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        rows = zip(query, tables, positions.tolist(), strict=True)
        return torch.stack([_attend(row, cache, table, position, scoring) for row, table, position in rows])

    def attend_prompts(self, query: torch.Tensor, cache: Cache, prompts: Prompts, scoring: Scoring) -> torch.Tensor:
        out = torch.empty(len(query), query.shape[1] * query.shape[2], dtype=query.dtype)
        for table, (row, start, count) in zip(prompts.tables, prompts.spans.tolist(), strict=True):
            for token in range(count):
                out[row + token] = _attend(query[row + token], cache, table, start + token, scoring)
        return out

    def tasks_of(self, counts: list[int], group: int, vector_bytes: int) -> list[tuple[int, int]]:
        return [(index, 0) for index in range(len(counts))]

    def add_low_rank(
        self, states: torch.Tensor, outs: Sequence[torch.Tensor], factors: Sequence[Factors], slots: torch.Tensor
    ) -> None:
        for out, of in zip(outs, factors, strict=True):
            for row, slot in enumerate(slots.tolist()):
                if slot >= 0:
                    rank = int(of.ranks[slot])
                    a, b = of.a[slot, :rank].float(), of.b[slot, :, :rank].float()
                    out[row] = (out[row].float() + b @ (a @ states[row].float())).to(out.dtype)

    def add_low_rank_pieces(
        self, states: torch.Tensor, outs: Sequence[torch.Tensor], factors: Sequence[Factors], pieces: torch.Tensor
    ) -> None:
        slots = torch.full((len(states),), -1)
        for first, count, slot in pieces.tolist():
            slots[first : first + count] = slot
        self.add_low_rank(states, outs, factors, slots)

    def advance(self, numbers: torch.Tensor, tables: torch.Tensor, likeliest: torch.Tensor, blocks: Blocks) -> None:
        for row, table in enumerate(tables.tolist()):
            if table[0] != blocks.scratch:
                position = int(numbers[1, row]) + 1
                block = table[min(position // blocks.tokens, len(table) - 1)]
                numbers[0, row], numbers[1, row] = likeliest[row], position
                numbers[2, row] = block * blocks.tokens + position % blocks.tokens


def _attend(query: torch.Tensor, cache: Cache, table: torch.Tensor, position: int, scoring: Scoring) -> torch.Tensor:
    """One token's attention: `query` `[heads, dim]` to `[heads * dim]`."""
    first = 0 if scoring.window is None else max(0, position - scoring.window + 1)
    seen = torch.arange(first, position + 1)
    slots = table[seen // cache.block_tokens].long() * cache.block_tokens + seen % cache.block_tokens
    group = len(query) // len(cache.keys)
    keys, values = (states[:, slots].float().repeat_interleave(group, dim=0) for states in (cache.keys, cache.values))
    scores = torch.einsum("hd,hnd->hn", query.float(), keys) * scoring.scale
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    return torch.einsum("hn,hnd->hd", scores.softmax(dim=-1), values).flatten().to(query.dtype)
