"""Waiting: for what cannot be cancelled, and for something to change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

# How long whoever is cancelled waits for an engine to end what it was asked for.
_ENGINE_PATIENCE_S = 5.0


async def engine_step(work: Awaitable[T]) -> T:
    """The result of something that an engine does, which is never cancelled."""
    return await to_end(work, patience_s=_ENGINE_PATIENCE_S)


async def to_end(work: Awaitable[T], *, patience_s: float | None = None) -> T:
    """The result of what cannot be cancelled: who is cancelled meanwhile still waits for its end."""
    work = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work}, timeout=patience_s)
        if work.done() and not work.cancelled():
            work.exception()  # looked at, so that asyncio does not report it as forgotten
        raise


class Changes:
    """Wakes the one task that waits for something to be different. Lives on one event loop's thread."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._changed.set()

    async def next(self, timeout_s: float | None = None) -> bool:
        """Waits until something changes from now on. False: it took longer than `timeout_s`."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
