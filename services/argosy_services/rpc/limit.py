"""How long a call may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class TimeLimit:
    """Ends the steps of one call, at its deadline or when somebody calls `end`; a context manager around all of them.

    Between steps nothing is cut off, since what is sent then is the caller's already. A stream takes a step for each
    message: one timer for all of them costs a tenth of what `asyncio.timeout` does around each.
    """

    def __init__(self, remaining_s: float | None) -> None:
        self.is_over = False
        self._remaining_s = remaining_s
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> TimeLimit:
        if self._remaining_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._remaining_s, self.end)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _raised: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def end(self) -> None:
        """Ends the step that is awaited, or the next one."""
        if not self.is_over:
            self.is_over = True
            if self._task is not None:
                self._task.cancel()

    async def within(self, step: Callable[[], Awaitable[T]]) -> T:
        """Awaits a step. Raises TimeoutError where the time is over; a cancellation by others goes on as such."""
        if self.is_over:
            raise TimeoutError
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a step is awaited outside of a task")
        others, self._task = task.cancelling(), task
        try:
            return await step()
        except asyncio.CancelledError:
            if self.is_over and task.uncancel() <= others:
                raise TimeoutError from None
            raise
        finally:
            self._task = None
