"""How many replicas a deployment should have: pure functions of what its replicas report.

Ray Serve calls them in its controller, several times a second; bounds, delays and smoothing are applied around them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol


class ScalingContext(Protocol):
    """What is used of Ray Serve's `AutoscalingContext`."""

    target_num_replicas: int
    total_num_requests: float
    aggregated_metrics: Mapping[str, Mapping[Any, float]] | None


class EngineScaling:
    """Replicas of a generation engine, from what limits one: prompt tokens that wait, and the cache's fullness.

    `waiting_tokens` is the backlog that one replica may have, a second or so of its prefill. `kv_use` is the share of
    the cache beyond which sequences are soon put back. An adapter miss loads one while a request waits; a replica with
    more than `adapter_misses` in the look-back period has too many adapters to hold.
    """

    def __init__(self, waiting_tokens: float = 2_048, kv_use: float = 0.8, adapter_misses: float = 8) -> None:
        self._limits = {"waiting_tokens": waiting_tokens, "kv_use": kv_use, "adapter_misses": adapter_misses}

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas; without reports the number stays."""
        reports = context.aggregated_metrics or {}
        loads = [sum(reports[name].values()) / limit for name, limit in self._limits.items() if reports.get(name)]
        if not loads:
            # From zero nothing can report: a request that waits at a handle wakes the first replica.
            return max(context.target_num_replicas, int(context.total_num_requests > 0)), {}
        return max(math.ceil(max(loads)), int(context.total_num_requests > 0)), {}


class EmbeddingScaling:
    """Replicas of an embedding model, from the texts that wait to be put into a batch.

    `waiting_texts` is how many may wait for one replica.
    """

    def __init__(self, waiting_texts: float = 256) -> None:
        self._limit = waiting_texts

    def __call__(self, context: ScalingContext) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas; without reports the number stays."""
        waiting = (context.aggregated_metrics or {}).get("waiting_texts")
        if not waiting:
            return max(context.target_num_replicas, int(context.total_num_requests > 0)), {}
        return max(math.ceil(sum(waiting.values()) / self._limit), int(context.total_num_requests > 0)), {}
