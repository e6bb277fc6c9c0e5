"""What a run may spend, and what it has spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from argosy_services.agents.types import Budget, Outcome, Usage
from argosy_services.errors import ArgosyError, Reason

T = TypeVar("T")


class BudgetSpentError(Exception):
    """Nothing is left of a part of the budget. Never leaves a run: it ends it with `outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome


class Meter:
    """Measures one run against its budget. Whatever the run begins shares it."""

    def __init__(self, budget: Budget, spent_s: float = 0.0) -> None:
        """`spent_s` is the time that a resumed run took before."""
        self._budget = budget
        self._spent_s = spent_s
        self._start = time.monotonic() - spent_s
        self._reserved = 0
        self._returned = asyncio.Event()
        self._pauses = 0
        self._paused_at = 0.0
        self.usage = Usage()
        self.steps = 0
        self.tool_calls = 0

    def start(self) -> None:
        """The time of the run begins now rather than when the meter was made."""
        self._start = time.monotonic() - self._spent_s

    @property
    def deadline(self) -> float:
        """When the time is up, as a time of `time.monotonic()`."""
        return self._start + self._budget.max_seconds

    @property
    def seconds(self) -> float:
        """Time since the start, without pauses."""
        return (self._paused_at if self._pauses else time.monotonic()) - self._start

    def seconds_left(self) -> float:
        """Time until the deadline, not below 0."""
        return max(0.0, self._budget.max_seconds - self.seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock: the run waits for somebody outside."""
        if not self._pauses:
            self._paused_at = time.monotonic()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._start += time.monotonic() - self._paused_at

    def check(self) -> None:
        """Raises BudgetSpentError where the tokens or the time are used up."""
        self._check_tokens()
        if not self.seconds_left():
            raise BudgetSpentError(Outcome.TIME_LIMIT)

    def _check_tokens(self) -> None:
        if self._unspent <= 0:
            raise BudgetSpentError(Outcome.TOKEN_LIMIT)

    @property
    def _unspent(self) -> int:
        return self._budget.max_tokens - self.usage.completion_tokens

    @asynccontextmanager
    async def reserved(self, most: int) -> AsyncIterator[int]:
        """How many of `most` tokens a completion may have; nothing else gets them meanwhile. Charge what it consumed
        within the block.

        Where others hold so many that fewer than `most` are free, this waits for them: completions mostly need far
        less than they reserve, and one that is content with a rest is cut off. Raises BudgetSpentError where
        everything is spent, or the time is up.
        """
        while True:
            self._check_tokens()
            free = self._unspent - self._reserved
            if free >= most or not self._reserved:
                break
            await self.in_time(self._returned.wait())
        granted = min(most, free)
        self._reserved += granted
        try:
            yield granted
        finally:
            self._reserved -= granted
            returned, self._returned = self._returned, asyncio.Event()
            returned.set()

    def begin_step(self) -> int:
        """The number of the next step."""
        self.steps += 1
        return self.steps

    def begin_call(self) -> None:
        """Counts a call of a tool. Raises BudgetSpentError where there is none left."""
        if not self.calls_left:
            raise BudgetSpentError(Outcome.TOOL_CALL_LIMIT)
        self.tool_calls += 1

    @property
    def calls_left(self) -> int:
        """Calls of tools that may still be made."""
        return self._budget.max_tool_calls - self.tool_calls

    def charge(self, usage: Usage) -> None:
        """Adds what a finished answer consumed."""
        self.usage = self.usage.plus(usage)

    async def in_time(self, work: Awaitable[T]) -> T:
        """The result of `work`, which is cancelled at the deadline. Raises BudgetSpentError then."""
        timer = asyncio.timeout(self.seconds_left())
        try:
            async with timer:
                return await work
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise BudgetSpentError(Outcome.TIME_LIMIT) from error
        except ArgosyError as error:
            # The only deadline that a chat model is given is that of the run.
            if error.reason is not Reason.DEADLINE_EXCEEDED:
                raise
            raise BudgetSpentError(Outcome.TIME_LIMIT) from error
