"""What the task that follows one adapter shares with the calls that steer it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from argosy_services.adapters.registry import Adapter
from argosy_services.adapters.residence import Residence
from argosy_services.adapters.store import Wanted
from argosy_services.adapters.waiting import Changes


class Leaving(Exception):  # noqa: N818 - not a failure
    """The adapter was unloaded before it was ready."""


class Life:
    """One adapter on its way. Lives on the event loop's thread, `cancelled` apart.

    `cancelled` tells threads that work for the adapter to stop, `has_files` whether it has found or fetched its files,
    `taken_in` whether its residence may hold it, `retry_after_s` when it may succeed after it failed, if ever.
    """

    def __init__(self, adapter: Adapter, residence: Residence, wanted: Wanted) -> None:
        self.adapter = adapter
        self.residence = residence
        self.wanted = wanted
        self.accepted = time.monotonic()
        self.cancelled = threading.Event()
        self.task: asyncio.Task[None] | None = None
        self.has_files = False
        self.taken_in = False
        self.retry_after_s: float | None = None
        self._leave_by: float | None = None
        self._has_turn = False
        self._changes = Changes()

    @property
    def leaving(self) -> bool:
        """Whether it was told to leave."""
        return self._leave_by is not None

    def leave(self, drain_s: float) -> None:
        """Has it leave within `drain_s` seconds. Of several deadlines the earliest counts."""
        deadline = time.monotonic() + drain_s
        self._leave_by = deadline if self._leave_by is None else min(self._leave_by, deadline)
        self.cancelled.set()
        self._changes.tell()

    def give_turn(self) -> None:
        """Lets it be loaded now."""
        self._has_turn = True
        self._changes.tell()

    def lease_ended(self) -> None:
        """Somebody stopped using it."""
        self._changes.tell()

    def check_wanted(self) -> None:
        """Raises Leaving once it must leave."""
        if self.leaving:
            raise Leaving

    async def until_turn(self) -> None:
        """Waits until it may be loaded. Raises Leaving."""
        self.check_wanted()
        while not self._has_turn:
            await self._changes.next()
            self.check_wanted()

    async def pause(self, seconds: float) -> None:
        """Waits. Raises Leaving as soon as it must leave."""
        deadline = time.monotonic() + seconds
        self.check_wanted()
        while (left_s := deadline - time.monotonic()) > 0:
            await self._changes.next(left_s)
            self.check_wanted()

    async def until_leaving(self) -> None:
        """Waits until it must leave."""
        while not self.leaving:
            await self._changes.next()

    async def until_unused(self, grace_s: float = 0.0) -> bool:
        """Waits until nobody uses it. False: its time to leave, and `grace_s` seconds after it, came first."""
        while self.adapter.tickets:
            if not await self._changes.next((self._leave_by or 0.0) + grace_s - time.monotonic()):
                return not self.adapter.tickets
        return True


class Line:
    """Lives that wait to be loaded; the first `at_once` of them have their turn."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._lives: list[Life] = []

    @contextmanager
    def place(self, life: Life) -> Iterator[None]:
        """A place in the line for the length of a `with` block."""
        self._lives.append(life)
        self._give_turns()
        try:
            yield
        finally:
            self._lives.remove(life)
            self._give_turns()

    def _give_turns(self) -> None:
        for life in self._lives[: self._at_once]:
            life.give_turn()
