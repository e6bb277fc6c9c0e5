"""Waiting for what cannot be cancelled."""

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
