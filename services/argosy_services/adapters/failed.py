"""Adapters that failed on this replica: which are tried again and when, and whose files are still here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

_LONGEST_PAUSE_S = 60.0


@dataclass(slots=True)
class _Failed:
    times: int = 0
    due: float = math.inf
    over: bool = False


class FailedHere:
    """Plain bookkeeping by adapters' numbers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[int, _Failed] = {}

    def note(self, number: int, retry_after_s: float | None) -> None:
        """An adapter has failed. It is due again after `retry_after_s` seconds, then twice that and so on up to a
        minute; None: never.
        """
        failed = self._failed.setdefault(number, _Failed())
        pause_s = math.inf if retry_after_s is None else min(_LONGEST_PAUSE_S, retry_after_s * 2**failed.times)
        failed.times = min(failed.times + 1, 16)
        failed.due = self._clock() + pause_s
        failed.over = True

    def begun(self, number: int) -> None:
        """It is being tried again: not due, and its files are its own business, until it fails once more."""
        if failed := self._failed.get(number):
            failed.due, failed.over = math.inf, False

    def due(self, number: int) -> bool:
        """Whether it is time to try it again."""
        failed = self._failed.get(number)
        return failed is not None and self._clock() >= failed.due

    def forget(self, wanted: Collection[int]) -> list[int]:
        """Forgets those that are wanted no more; returns the ones whose files nobody else removes."""
        gone = self._failed.keys() - wanted
        return [number for number in gone if self._failed.pop(number).over]
