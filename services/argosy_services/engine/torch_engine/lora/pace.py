"""How fast an adapter is read beside running sequences."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

# The share of a step for which a thread computes beside it.
_SHARE = 0.4
# How often it looks for the next step while it rests, in shares of a step, and after how many steps' time it goes on
# without one.
_LOOKS, _PATIENCE = 0.05, 2.0


class Beat(NamedTuple):
    """The steps that an engine has made, and the seconds that the last one took."""

    steps: int
    seconds: float


class Pace:
    """Spreads the work of one thread over an engine's steps.

    The engine's threads meet after each operation: what computes beside them for a while makes the step that much
    longer, whatever its priority is.
    """

    def __init__(self, beat: Callable[[], Beat | None]) -> None:
        """`beat` is None while nothing runs; then there are no rests."""
        self._beat = beat
        self._begin(beat())

    def rest(self) -> None:
        """Waits for the next step if enough has been computed beside this one. Called by the thread that works."""
        now = self._beat()
        if now is None or self._last is None or now.steps != self._last.steps:
            self._begin(now)
        elif time.thread_time() - self._began >= _SHARE * now.seconds:
            end = time.monotonic() + _PATIENCE * now.seconds
            while now is not None and now.steps == self._last.steps and time.monotonic() < end:
                time.sleep(_LOOKS * now.seconds)
                now = self._beat()
            self._begin(now)

    def _begin(self, beat: Beat | None) -> None:
        self._last, self._began = beat, time.thread_time()


def no_rest() -> None:
    """What takes the place of `Pace.rest` where nothing runs beside the work."""
