"""Attention of one step over the paged cache: one batched product for all decoding sequences, one call for each prompt.

The query heads that share a key-value head are folded into the query length instead of repeating keys and values; on
CPU this avoids the slow path that scaled_dot_product_attention takes for grouped queries of length one. Layers with a
window read only what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.models.decoder import soft_cap
from argosy_services.engine.torch_engine.models.rope import Turn, rotate
from argosy_services.engine.torch_engine.step import Work


class PagedAttention:
    """The attention of one step. Rows of the batch are ordered as `work` is, one-token items first."""

    def __init__(self, config: DecoderConfig, pool: KvPool, work: Sequence[Work], device: torch.device) -> None:
        self._pool = pool
        self._config = config
        tables = [_slots(item, pool.block_tokens, device) for item in work]
        self._write_slots = torch.cat(
            [slots[item.start : item.start + item.count] for slots, item in zip(tables, work, strict=True)]
        )
        self._decodes = sum(1 for item in work if item.count == 1)
        self._plans = {
            window: _Plan(
                _DecodePlan(tables[: self._decodes], window, device) if self._decodes else None,
                [
                    _PrefillPlan(item, slots, config.group, window, device)
                    for slots, item in zip(tables[self._decodes :], work[self._decodes :], strict=True)
                ],
            )
            for window in {kind.window for kind in config.layer_kinds}
        }

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, turn: Turn | None
    ) -> torch.Tensor:
        """See `models.decoder.Attention`."""
        if turn is not None:
            query, key = rotate(query, *turn), rotate(key, *turn)
        self._pool.write(layer, self._write_slots, key, value)
        plan = self._plans[self._config.layer_kinds[layer].window]
        outputs = []
        if plan.decode is not None:
            outputs.append(self._attend_decodes(layer, query[: self._decodes], plan.decode))
        start = self._decodes
        for prefill in plan.prefills:
            outputs.append(self._attend_prefill(layer, query[start : start + prefill.count], prefill))
            start += prefill.count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_decodes(self, layer: int, query: torch.Tensor, plan: _DecodePlan) -> torch.Tensor:
        heads, group, dim = self._config.kv_heads, self._config.group, self._config.head_dim
        rows, length = plan.hidden.shape
        keys, values = (states.view(heads * rows, length, dim) for states in self._pool.read(layer, plan.slots))
        # [rows, heads, group, dim] -> [heads * rows, group, dim], the order in which the pool gives keys and values.
        folded = query.view(rows, heads, group, dim).transpose(0, 1).reshape(heads * rows, group, dim)
        scores = self._scores(folded, keys).view(heads, rows, group, length)
        weights = torch.softmax(scores.float().masked_fill_(plan.hidden[None, :, None, :], float("-inf")), dim=-1)
        attended = torch.bmm(weights.to(query.dtype).view(heads * rows, group, length), values)
        return attended.view(heads, rows, group, dim).transpose(0, 1).reshape(rows, heads * group * dim)

    def _attend_prefill(self, layer: int, query: torch.Tensor, plan: _PrefillPlan) -> torch.Tensor:
        heads, group, dim = self._config.kv_heads, self._config.group, self._config.head_dim
        keys, values = self._pool.read(layer, plan.slots)
        # [tokens, heads, group, dim] -> [heads, group * tokens, dim]
        folded = query.view(plan.count, heads, group, dim).permute(1, 2, 0, 3).reshape(heads, group * plan.count, dim)
        if self._config.attention_softcap is None:
            attended = torch.nn.functional.scaled_dot_product_attention(
                folded[None], keys[None], values[None], attn_mask=plan.mask, scale=self._config.attention_scale
            )
        else:
            # No fused attention caps scores; one head at a time, for they are the largest tensors of a step.
            attended = torch.cat([self._attend_head(folded[[i]], keys[[i]], values[[i]], plan) for i in range(heads)])
        return attended.view(heads, group, plan.count, dim).permute(2, 0, 1, 3).reshape(plan.count, heads * group * dim)

    def _attend_head(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: _PrefillPlan
    ) -> torch.Tensor:
        scores = self._scores(query, key).float().masked_fill_(~plan.mask, float("-inf"))
        return torch.bmm(torch.softmax(scores, dim=-1).to(query.dtype), value)

    def _scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Scores `[n, queries, keys]` of `query` `[n, queries, dim]` and `key` `[n, keys, dim]`, scaled and capped."""
        scores = torch.bmm(query, key.transpose(1, 2)) * self._config.attention_scale
        cap = self._config.attention_softcap
        return scores if cap is None else soft_cap(scores, cap)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the layers of one window read, and what of it each token sees."""

    decode: _DecodePlan | None
    prefills: Sequence[_PrefillPlan]


class _DecodePlan:
    """Slots `[rows * length]` of what sequences see, padded to the longest, and bool `[rows, length]`, what of it is
    padding and `hidden`."""

    def __init__(self, tables: Sequence[torch.Tensor], window: int | None, device: torch.device) -> None:
        seen = list(tables) if window is None else [table[-window:] for table in tables]
        lengths = torch.tensor([len(table) for table in seen], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True)
        self.hidden = torch.arange(padded.shape[1], device=device)[None, :] >= lengths[:, None]
        self.slots = padded.flatten()


class _PrefillPlan:
    """Slots `[length]` of what one sequence's new tokens see, and the mask `[group * count, length]` of each token."""

    def __init__(self, item: Work, slots: torch.Tensor, group: int, window: int | None, device: torch.device) -> None:
        first = 0 if window is None else max(0, item.start - window + 1)
        self.count = item.count
        self.slots = slots[first:]
        query = torch.arange(item.start, item.start + item.count, device=device)[:, None]
        key = torch.arange(first, len(slots), device=device)[None, :]
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        self.mask = visible.repeat(group, 1)


def _slots(item: Work, block_tokens: int, device: torch.device) -> torch.Tensor:
    """Slots of a sequence's tokens up to the end of its work, int64 `[start + count]`."""
    length = item.start + item.count
    table = torch.tensor(item.sequence.table, device=device)
    offsets = torch.arange(block_tokens, device=device)
    return (table[:, None] * block_tokens + offsets).flatten()[:length]
