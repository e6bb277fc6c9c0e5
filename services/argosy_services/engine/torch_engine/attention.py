"""Attention of one step over the paged cache: one batched product for all decoding sequences, one call for each prompt.

The query heads that share a key-value head are folded into the query length instead of repeating keys and values; on
CPU this avoids the slow path that scaled_dot_product_attention takes for grouped queries of length one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.step import Work


class PagedAttention:
    """The attention of one step. Rows of the batch are ordered as `work` is, one-token items first."""

    def __init__(self, config: DecoderConfig, pool: KvPool, work: Sequence[Work], device: torch.device) -> None:
        self._pool = pool
        self._config = config
        self._scale = config.head_dim**-0.5
        tables = [_slots(item, pool.block_tokens, device) for item in work]
        self._write_slots = torch.cat(
            [slots[item.start : item.start + item.count] for slots, item in zip(tables, work, strict=True)]
        )
        self._decodes = sum(1 for item in work if item.count == 1)
        self._decode = _DecodePlan(tables[: self._decodes], config.window, device) if self._decodes else None
        self._prefills = [
            _PrefillPlan(item, slots, config, device)
            for slots, item in zip(tables[self._decodes :], work[self._decodes :], strict=True)
        ]

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `models.decoder.Attention`."""
        self._pool.write(layer, self._write_slots, key, value)
        outputs = []
        if self._decode is not None:
            outputs.append(self._attend_decodes(layer, query[: self._decodes], self._decode))
        start = self._decodes
        for plan in self._prefills:
            outputs.append(self._attend_prefill(layer, query[start : start + plan.count], plan))
            start += plan.count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_decodes(self, layer: int, query: torch.Tensor, plan: _DecodePlan) -> torch.Tensor:
        heads, group, dim = self._config.kv_heads, self._config.group, self._config.head_dim
        rows, length = plan.mask.shape
        keys, values = (states.view(heads * rows, length, dim) for states in self._pool.read(layer, plan.slots))
        # [rows, heads, group, dim] -> [heads * rows, group, dim], the order in which the pool gives keys and values.
        folded = query.view(rows, heads, group, dim).transpose(0, 1).reshape(heads * rows, group, dim)
        scores = torch.bmm(folded, keys.transpose(1, 2)).view(heads, rows, group, length) * self._scale
        weights = torch.softmax(scores.float() + plan.mask[None, :, None, :], dim=-1).to(query.dtype)
        attended = torch.bmm(weights.view(heads * rows, group, length), values)
        return attended.view(heads, rows, group, dim).transpose(0, 1).reshape(rows, heads * group * dim)

    def _attend_prefill(self, layer: int, query: torch.Tensor, plan: _PrefillPlan) -> torch.Tensor:
        heads, group, dim = self._config.kv_heads, self._config.group, self._config.head_dim
        keys, values = self._pool.read(layer, plan.slots)
        # [tokens, heads, group, dim] -> [heads, group * tokens, dim]
        folded = query.view(plan.count, heads, group, dim).permute(1, 2, 0, 3).reshape(heads, group * plan.count, dim)
        attended = torch.nn.functional.scaled_dot_product_attention(
            folded[None], keys[None], values[None], attn_mask=plan.mask, scale=self._scale
        )
        return attended.view(heads, group, plan.count, dim).permute(2, 0, 1, 3).reshape(plan.count, heads * group * dim)


class _DecodePlan:
    """Slots `[rows * length]` of all sequences, padded to the longest, and the mask `[rows, length]` that hides the
    padding and what lies before the window."""

    def __init__(self, tables: Sequence[torch.Tensor], window: int | None, device: torch.device) -> None:
        lengths = torch.tensor([len(table) for table in tables], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(list(tables), batch_first=True)
        positions = torch.arange(padded.shape[1], device=device)
        visible = positions[None, :] < lengths[:, None]
        if window is not None:
            visible &= positions[None, :] >= lengths[:, None] - window
        self.slots = padded.flatten()
        self.mask = torch.zeros(padded.shape, device=device).masked_fill_(~visible, float("-inf"))


class _PrefillPlan:
    """Slots `[length]` of one sequence and the mask `[group * count, length]` of its new tokens."""

    def __init__(self, item: Work, slots: torch.Tensor, config: DecoderConfig, device: torch.device) -> None:
        self.count = item.count
        self.slots = slots
        query = torch.arange(item.start, item.start + item.count, device=device)[:, None]
        key = torch.arange(len(slots), device=device)[None, :]
        visible = key <= query
        if config.window is not None:
            visible &= key > query - config.window
        self.mask = visible.repeat(config.group, 1)


def _slots(item: Work, block_tokens: int, device: torch.device) -> torch.Tensor:
    """Slots of a sequence's tokens up to the end of its work, int64 `[start + count]`."""
    length = item.start + item.count
    table = torch.tensor(item.sequence.table, device=device)
    offsets = torch.arange(block_tokens, device=device)
    return (table[:, None] * block_tokens + offsets).flatten()[:length]
