"""Whether a server takes calls: starting, serving or draining, and how many calls are running."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager

from argosy_services.errors import ArgosyError, Reason


class Phase(enum.Enum):
    """The life of a server."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Gate:
    """Admits calls. One gate is shared by all servicers of a process; it lives on the event loop's thread."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.running = 0
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self) -> None:
        """Weights are loaded: take calls."""
        self.phase = Phase.SERVING

    def drain(self) -> None:
        """Take no new calls. Those that run go on; long-lived watches end."""
        self.phase = Phase.DRAINING
        self.draining.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call runs. False: the time was up first."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Counts a call for its duration, or refuses it."""
        if self.phase is Phase.STARTING:
            raise ArgosyError(Reason.STARTING, "the server is loading its models; retry soon", retry_after_s=1.0)
        if self.phase is Phase.DRAINING:
            raise draining()
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()


def draining() -> ArgosyError:
    """What a call is told that comes, or still watches, while the server shuts down."""
    return ArgosyError(Reason.DRAINING, "the server is shutting down; retry on another one", retry_after_s=1.0)
