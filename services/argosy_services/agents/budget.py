"""What a run may spend, and what it has spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from argosy_services.agents.ports import Chunk
from argosy_services.agents.types import Budget, Outcome, Usage
from argosy_services.errors import ArgosyError, Reason

T = TypeVar("T")


class BudgetSpentError(Exception):
    """Nothing is left of a part of the budget. Never leaves a run: it ends it with `outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.value)
        self.outcome = outcome


class Meter:
    """Measures one run against its budget, from the moment it is made."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._start = time.monotonic()
        self.usage = Usage()

    @property
    def deadline(self) -> float:
        """When the time is up, as a time of `time.monotonic()`."""
        return self._start + self._budget.max_seconds

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    def seconds_left(self) -> float:
        """Time until the deadline, not below 0."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raises BudgetSpentError where the tokens or the time are used up."""
        self.tokens_left()
        if not self.seconds_left():
            raise BudgetSpentError(Outcome.TIME_LIMIT)

    def tokens_left(self) -> int:
        """Tokens that may still be generated. Raises BudgetSpentError where there are none."""
        left = self._budget.max_tokens - self.usage.completion_tokens
        if left <= 0:
            raise BudgetSpentError(Outcome.TOKEN_LIMIT)
        return left

    def charge(self, chunk: Chunk) -> None:
        """Adds what a finished answer consumed."""
        self.usage = Usage(
            self.usage.prompt_tokens + chunk.prompt_tokens,
            self.usage.cached_tokens + chunk.cached_tokens,
            self.usage.completion_tokens + chunk.completion_tokens,
        )

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
