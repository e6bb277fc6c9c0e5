"""From one vector a token to one vector a text."""

from __future__ import annotations

import torch

from argosy_services.embeddings.packing import Packed
from argosy_services.embeddings.types import Pooling


def pool(pooling: Pooling, states: torch.Tensor, packed: Packed) -> torch.Tensor:
    """`states` [rows, hidden] of the texts of `packed` to float32 [texts, hidden], in the order of their batch."""
    pooled = torch.empty(len(packed.order), states.shape[1])
    first = 0
    for group in packed.groups:
        tokens = group.of(states)
        vectors = tokens[:, 0].float() if pooling is Pooling.CLS else tokens.mean(1, dtype=torch.float32)
        pooled[packed.order[first : first + group.texts]] = vectors
        first += group.texts
    return pooled
