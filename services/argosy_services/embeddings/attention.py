"""Attention (Vaswani et al., 2017) within each of the texts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from argosy_services.embeddings.packing import Group

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Above so many tokens the scores of one text no longer fit the caches.
_SHORT = 512
# Scores of short texts that are computed at once, 2 MiB of bfloat16.
_SCORES = 1 << 20


def attend(qkv: torch.Tensor, heads: int, groups: Sequence[Group]) -> torch.Tensor:
    """`qkv` [rows, 3 * hidden], queries before keys before values, to [rows, hidden]."""
    mixed = qkv.new_empty(qkv.shape[0], qkv.shape[1] // 3)
    for group in groups:
        # Torch's fused kernel is the faster one in float32 and the slower one in bfloat16.
        if qkv.dtype is torch.bfloat16 and group.tokens <= _SHORT:
            for part in group.parts(max(1, _SCORES // (heads * group.tokens**2))):
                _attend(qkv, mixed, heads, part, _products)
        else:
            _attend(qkv, mixed, heads, group, functional.scaled_dot_product_attention)
    return mixed


def _attend(qkv: torch.Tensor, mixed: torch.Tensor, heads: int, group: Group, attention: Attention) -> None:
    query, key, value = group.of(qkv).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    group.of(mixed).unflatten(2, (heads, -1)).copy_(attention(query, key, value).transpose(1, 2))


def _products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(2, 3))
    return torch.matmul(torch.softmax(scores, -1), value)
