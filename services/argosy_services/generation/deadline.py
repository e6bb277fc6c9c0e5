"""Deadlines, as times of `time.monotonic()`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from argosy_services.errors import deadline_exceeded


@asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Bounds the waiting inside the block. Raises DEADLINE_EXCEEDED; None sets no bound."""
    timer = asyncio.timeout(None if deadline is None else deadline - time.monotonic())
    try:
        async with timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise deadline_exceeded() from error
