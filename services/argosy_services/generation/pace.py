"""When the news of streams are sent: at ticks that all of them share, the rarer the more streams there are.

A message costs more than the tokens in it, on the cores that compute the tokens where the engine runs on a CPU, and on
the one thread of the event loop everywhere.
"""

from __future__ import annotations

import asyncio
import math

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
        self._waiting: list[asyncio.Event] = []

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

    def next_tick(self, now: float) -> float:
        """The first tick after `now`, or `now` without ticks. Times are those of `time.monotonic()`."""
        return (now // interval_s + 1) * interval_s if (interval_s := self.interval_s) else now

    def set_at_tick(self, news: asyncio.Event, now: float) -> None:
        """Sets an event at the next tick."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(self.next_tick(now) - now, self._tick)
        self._waiting.append(news)

    def _tick(self) -> None:
        waiting, self._waiting = self._waiting, []
        for news in waiting:
            news.set()
