"""Stop strings over text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the first stop string in a text and lets the text before it through as early as that is safe.

    The answer does not depend on how the text is cut into pieces: it is as if the text came a character at a time and
    ended with the first stop string that is complete. Where several are complete at one place, the longest counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty texts; without any, all text passes at once."""
        self._stops = tuple(dict.fromkeys(stops))
        self._prefixes = {stop[:length] for stop in self._stops for length in range(1, len(stop))}
        self._longest = max(map(len, self._prefixes), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to show now. Once `matched` is set everything before the stop string has been given,
        and further text is ignored.
        """
        if self.matched is not None:
            return ""
        text = self._held + text
        if (end := self._first_end(text)) is not None:
            self._held = ""
            self.matched = max((stop for stop in self._stops if text.endswith(stop, 0, end)), key=len)
            return text[: end - len(self.matched)]
        shown = len(text) - self._undecided(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back, once it is certain that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _first_end(self, text: str) -> int | None:
        return min((at + len(stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = min(self._longest, len(text))
        return next((length for length in range(longest, 0, -1) if text[-length:] in self._prefixes), 0)
