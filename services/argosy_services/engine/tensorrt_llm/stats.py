"""The library's iteration statistics in our words. Its documentation promises no key: each may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from argosy_services.engine.base import EngineStats


@dataclass(slots=True)
class Statistics:
    """What the library told last. Counters go on over a restart of the library."""

    steps: int = 0
    preemptions: int = 0
    blocks_in_use: int = 0
    blocks_total: int = 0
    _queued: int = 0
    _iteration: int = 0
    _paused: int = 0

    def take(self, report: Mapping[str, Any]) -> None:
        """Takes one iteration's report."""
        iteration = _number(report, "iter", self._iteration)
        self.steps += max(0, iteration - self._iteration)
        self._iteration = iteration
        self._queued = _number(report, "numQueuedRequests", 0)
        cache = _table(report, "kvCacheStats")
        self.blocks_in_use = _number(cache, "usedNumBlocks", self.blocks_in_use)
        self.blocks_total = _number(cache, "maxNumBlocks", self.blocks_total)
        paused = _number(_table(report, "inflightBatchingStats"), "numPausedRequests", 0)
        self.preemptions += max(0, paused - self._paused)
        self._paused = paused

    def library_was_replaced(self) -> None:
        """A new instance counts from 0 and holds nothing."""
        self._iteration = self._queued = self._paused = self.blocks_in_use = 0

    def picture(
        self, *, live: int, unstarted: int, unstarted_tokens: int, adapters: int, ready: bool = True
    ) -> EngineStats:
        """`unstarted` of the `live` sequences have no token yet; only those can wait, however late a report is."""
        waiting = min(self._queued, unstarted)
        return EngineStats(
            running=live - waiting,
            waiting=waiting,
            waiting_tokens=unstarted_tokens if waiting else 0,
            kv_blocks_in_use=self.blocks_in_use,
            kv_blocks_total=self.blocks_total,
            adapters=adapters,
            steps=self.steps,
            preemptions=self.preemptions,
            ready=ready,
        )


def _table(report: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = report.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(report: Mapping[str, Any], key: str, default: int) -> int:
    value = report.get(key)
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
