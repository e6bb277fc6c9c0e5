"""From one vector a token to one vector a text."""

from __future__ import annotations

import torch

from argosy_services.embeddings.types import Pooling


def pool(pooling: Pooling, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`states` float32 [texts, tokens, hidden] and `mask` bool [texts, tokens] to float32 [texts, hidden].

    Every text has at least one token.
    """
    if pooling is Pooling.CLS:
        return states[:, 0]
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
