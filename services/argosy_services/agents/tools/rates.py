"""How often a server calls a tool."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    calls: float
    filled: float


class Rates:
    """A token bucket for each tool: as many calls at once as it may have in a minute, and then one for each that comes
    back.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str, _Bucket] = {}

    def wait_for(self, name: str, per_minute: int) -> float:
        """Counts a call, or says in how many seconds there will be one; 0 means it may be made. Without a rate it
        always may.
        """
        if per_minute <= 0:
            return 0.0
        now = self._now()
        bucket = self._buckets.setdefault(name, _Bucket(per_minute, now))
        bucket.calls = min(per_minute, bucket.calls + (now - bucket.filled) * per_minute / 60)
        bucket.filled = now
        if bucket.calls < 1:
            return (1 - bucket.calls) * 60 / per_minute
        bucket.calls -= 1
        return 0.0
