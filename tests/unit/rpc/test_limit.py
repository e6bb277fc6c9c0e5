"""Time limits of calls: what they end, what they leave alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from argosy_services.rpc.limit import TimeLimit


async def give(value: int, after_s: float = 0.0) -> int:
    await asyncio.sleep(after_s)
    return value


async def test_steps_in_time_give_what_they_have() -> None:
    with TimeLimit(30.0) as limit:
        assert [await limit.within(partial(give, number)) for number in range(3)] == [0, 1, 2]
    with TimeLimit(None) as limit:
        assert await limit.within(lambda: give(4)) == 4


async def test_the_step_that_is_awaited_ends_at_the_deadline_and_frees_what_it_holds() -> None:
    ended = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    with TimeLimit(0.01) as limit, pytest.raises(TimeoutError):
        await limit.within(long)
    assert ended.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the task itself goes on"


async def test_time_that_runs_out_between_steps_ends_the_next_one_before_it_begins() -> None:
    begun: list[int] = []

    async def begin() -> None:
        begun.append(1)

    with TimeLimit(0.0) as limit:
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await limit.within(begin)
    assert not begun


async def test_a_cancelled_task_is_cancelled_even_when_the_time_is_over_as_well() -> None:
    with TimeLimit(None) as limit:
        task = asyncio.create_task(limit.within(lambda: give(1, after_s=30.0)))
        await asyncio.sleep(0)
        task.cancel()
        limit.end()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_ending_twice_is_ending_once() -> None:
    with TimeLimit(None) as limit:
        task = asyncio.create_task(limit.within(lambda: give(1, after_s=30.0)))
        await asyncio.sleep(0)
        limit.end()
        limit.end()
        with pytest.raises(TimeoutError):
            await task


async def test_a_step_that_fails_fails_as_itself() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise TimeoutError("of its own")

    stream = numbers()
    with TimeLimit(30.0) as limit:
        assert await limit.within(lambda: anext(stream)) == 1
        with pytest.raises(TimeoutError, match="of its own"):
            await limit.within(lambda: anext(stream))
        assert not limit.is_over


async def test_after_the_call_nothing_ends_the_task() -> None:
    with TimeLimit(0.01) as limit:
        await limit.within(lambda: give(1))
    await asyncio.sleep(0.02)
    assert not limit.is_over
