"""When the news of streams are sent: at ticks that all of them share, the rarer the more streams there are.

A message costs more than the tokens in it, on the cores that compute the tokens where the engine runs on a CPU, and on
the one thread of the event loop everywhere.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

# However many streams there are, a reader sees text grow this often.
_MOST_INTERVAL_S = 0.25


class Pace:
    """Owns the ticks. Lives on the event loop's thread."""

    def __init__(self, interval_s: float = 0.0, messages_per_second: float = math.inf) -> None:
        """Ticks are at least `interval_s` apart, 0 for none at all, and so far apart that the streams together send at
        most `messages_per_second`, unless that were more than a quarter of a second.
        """
        self._interval_s = interval_s
        self._messages_per_second = messages_per_second
        self._streams = 0
        self._waiting: list[Callable[[], None]] = []

    @property
    def interval_s(self) -> float:
        """Seconds between two ticks with the streams that there are now."""
        if not self._interval_s:
            return 0.0
        return max(self._interval_s, min(_MOST_INTERVAL_S, self._streams / self._messages_per_second))

    def began(self) -> None:
        """A stream is under way: it will send news, or waits for its prompt to be read."""
        self._streams += 1

    def ended(self) -> None:
        """A stream that began sends no more, or never did."""
        self._streams -= 1

    def call_at_tick(self, call: Callable[[], None], now: float) -> float:
        """Has something called at the first tick after `now`, and gives that tick; without ticks gives `now` and calls
        nothing. Times are those of `time.monotonic()`.
        """
        if not (interval_s := self.interval_s):
            return now
        tick = (now // interval_s + 1) * interval_s
        if not self._waiting:
            asyncio.get_running_loop().call_later(tick - now, self._tick)
        self._waiting.append(call)
        return tick

    def _tick(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
