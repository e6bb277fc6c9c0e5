"""What the kernels of the GPU path compute, in torch's operators and as literally as that goes."""

from __future__ import annotations

import torch

from argosy_services.engine.torch_engine.config import Activation
from argosy_services.engine.torch_engine.gpu.kernels import Cache, Factors, Prompts, Scoring
from argosy_services.engine.torch_engine.models.rope import rotate


class PlainKernels:
    """See `kernels.Kernels`."""

    def norm(self, states: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool) -> torch.Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (wide * weight).to(states.dtype) if offset else weight * wide.to(states.dtype)

    def rotate(self, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return rotate(states, cos, sin)

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
        self, states: torch.Tensor, out: torch.Tensor, factors: Factors, slots: torch.Tensor, ranks: torch.Tensor
    ) -> None:
        for row, slot in enumerate(slots.tolist()):
            if slot >= 0:
                rank = int(ranks[slot])
                a, b = factors.a[slot, :rank].float(), factors.b[slot, :, :rank].float()
                out[row] = (out[row].float() + b @ (a @ states[row].float())).to(out.dtype)


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
