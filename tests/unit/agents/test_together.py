"""Errors of tasks that run together, on every Python that is supported."""

from __future__ import annotations

import asyncio

import pytest

from argosy_services.agents.together import together


class ExpectedError(Exception):
    pass


async def end(error: BaseException | None, after: float = 0.0) -> None:
    await asyncio.sleep(after)
    if error is not None:
        raise error


async def end_together(*ends: tuple[BaseException | None, float]) -> None:
    async with together(ExpectedError) as group:
        for error, after in ends:
            group.create_task(end(error, after))


async def test_an_expected_error_comes_bare() -> None:
    first = ExpectedError("first")
    with pytest.raises(ExpectedError) as raised:
        await end_together((first, 0), (ExpectedError("later"), 60))
    assert raised.value is first


async def test_what_is_not_expected_comes_as_a_group() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await end_together((ExpectedError(), 0), (ValueError(), 0))
    assert sorted(type(each).__name__ for each in raised.value.exceptions) == ["ExpectedError", "ValueError"]


async def test_without_errors_tasks_have_their_results() -> None:
    async with together(ExpectedError) as group:
        task = group.create_task(end(None))
    assert task.done()


async def test_cancellation_passes() -> None:
    task = asyncio.create_task(end_together((None, 60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
