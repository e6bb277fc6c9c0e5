"""How a long pull tells what it is doing."""

from __future__ import annotations

import enum
from typing import Protocol


class Stage(enum.StrEnum):
    """What a pull is busy with. Stages come in this order; not every source has all of them."""

    WAITING = "waiting for another process"
    DOWNLOADING = "downloading"
    COPYING = "copying"
    CONVERTING = "converting"
    CHECKING = "checking"


class Progress(Protocol):
    """Is called every time that something has moved, by one thread at a time. Must be fast and must not raise.

    `done` and `total` are bytes of the stage; `total` is 0 where it is not known. A new stage starts again at 0.
    """

    def __call__(self, stage: Stage, done: int, total: int) -> None: ...


def silent(stage: Stage, done: int, total: int) -> None:
    """Tells nobody."""


class Meter:
    """Counts the bytes of one stage and reports each change."""

    def __init__(self, report: Progress, stage: Stage, total: int = 0) -> None:
        self._report = report
        self._stage = stage
        self._total = total
        self._done = 0
        report(stage, 0, total)

    def add(self, count: int) -> None:
        """Adds bytes; a negative count takes back what a retry throws away."""
        self.set(self._done + count)

    def set(self, done: int) -> None:
        """Sets the bytes done so far, within the total where that is known."""
        self._done = max(0, min(done, self._total) if self._total else done)
        self._report(self._stage, self._done, self._total)
