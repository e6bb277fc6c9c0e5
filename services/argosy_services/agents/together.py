"""Tasks that run together, and end with an error of their own kind as if they had run one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


@asynccontextmanager
async def together(expected: type[Exception]) -> AsyncGenerator[asyncio.TaskGroup]:
    """A task group that raises the first `expected` error by itself, where no other kind came with it.

    Not by `except*`: Python 3.11 before 3.11.4 wraps what is raised there into a group once more.
    """
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failed:
        found, rest = failed.split(expected)
        if found is None or rest is not None:
            raise
        raise found.exceptions[0] from None
