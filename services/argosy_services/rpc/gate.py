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
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut_off = False
        self._watchable = True
        self._calls: set[asyncio.Timeout] = set()
        self._watches: set[asyncio.Timeout] = set()

    def open(self) -> None:
        """Weights are loaded: take calls. Does nothing once the server drains."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.SERVING

    def drain(self) -> None:
        """Take no new calls. Those that run go on; long-lived watches end."""
        self.phase = Phase.DRAINING
        _expire(self._watches)

    def end_watches(self) -> None:
        """Watches end, and none goes on until `allow_watches`; calls are taken as before. For a server that is not sure
        that it drains.
        """
        self._watchable = False
        _expire(self._watches)

    def allow_watches(self) -> None:
        """Takes `end_watches` back."""
        self._watchable = True

    def cut_off(self) -> None:
        """After `drain`: end the calls that still run."""
        self._cut_off = True
        _expire(self._calls)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call runs. False: the time was up first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def admit(self, *, counted: bool = True) -> Iterator[None]:
        """Refuses a call with STARTING or DRAINING, or counts it for its duration; a watch is admitted uncounted."""
        if self.phase is Phase.STARTING:
            raise ArgosyError(Reason.STARTING, "the server is loading its models; retry soon", retry_after_s=1.0)
        if self.phase is Phase.DRAINING:
            raise draining()
        self.running += counted
        if self.running:
            self._idle.clear()
        try:
            yield
        finally:
            self.running -= counted
            if not self.running:
                self._idle.set()

    @contextmanager
    def bound(self, limit: asyncio.Timeout, *, watch: bool) -> Iterator[None]:
        """Lets a time limit, which has been entered, run out early: a watch's with `drain`, a call's with `cut_off`."""
        if self.must_end(watch=watch):
            raise draining()
        limits = self._watches if watch else self._calls
        limits.add(limit)
        try:
            yield
        finally:
            limits.discard(limit)

    def must_end(self, *, watch: bool) -> bool:
        """Whether a call or watch that was admitted may not go on."""
        return self._cut_off or (watch and (self.phase is Phase.DRAINING or not self._watchable))


def _expire(limits: set[asyncio.Timeout]) -> None:
    now = asyncio.get_running_loop().time()
    for limit in limits:
        if not limit.expired():
            limit.reschedule(now)


def draining() -> ArgosyError:
    """What a call is told that comes, or still watches, while the server shuts down."""
    return ArgosyError(Reason.DRAINING, "the server is shutting down; retry on another one", retry_after_s=1.0)
