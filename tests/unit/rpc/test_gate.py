"""The gate: who is let in, who is counted, who is ended when."""

from __future__ import annotations

import asyncio

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc.gate import Gate, Phase


def test_refuses_before_and_after() -> None:
    gate = Gate()
    assert _refusal(gate) is Reason.STARTING
    gate.open()
    with gate.admit():
        assert gate.running == 1
    assert gate.running == 0


async def test_draining_is_final() -> None:
    gate = Gate()
    gate.drain()
    gate.open()
    assert gate.phase is Phase.DRAINING
    assert _refusal(gate) is Reason.DRAINING


async def test_idle_is_when_the_last_call_has_ended() -> None:
    gate = Gate()
    gate.open()
    assert await gate.wait_idle(0)
    with gate.admit():
        with gate.admit(), gate.admit(counted=False):
            pass
        assert not await gate.wait_idle(0.01)
    assert await gate.wait_idle(0)


async def test_a_watch_is_ended_by_drain_and_a_call_by_cut_off() -> None:
    gate, watch, call = await _watched()
    gate.drain()
    with pytest.raises(TimeoutError):
        await watch
    await asyncio.sleep(0.01)
    assert not call.done()
    gate.cut_off()
    with pytest.raises(TimeoutError):
        await call
    with pytest.raises(ArgosyError):
        await _wait(gate, watch=False)


async def test_watches_end_and_are_allowed_again_while_calls_go_on() -> None:
    gate, watch, call = await _watched()
    gate.end_watches()
    with pytest.raises(TimeoutError):
        await watch
    assert gate.must_end(watch=True)
    with pytest.raises(ArgosyError) as caught:
        await _wait(gate, watch=True)
    assert caught.value.reason is Reason.DRAINING
    with gate.admit():
        assert not call.done()
    gate.allow_watches()
    again = asyncio.create_task(_wait(gate, watch=True))
    await asyncio.sleep(0.01)
    assert not again.done()
    assert not call.done()
    for task in (again, call):
        task.cancel()


async def _watched() -> tuple[Gate, asyncio.Task[None], asyncio.Task[None]]:
    """An open gate, with a watch and another call behind it."""
    gate = Gate()
    gate.open()
    watch, call = (asyncio.create_task(_wait(gate, watch=watch)) for watch in (True, False))
    await asyncio.sleep(0)
    return gate, watch, call


async def _wait(gate: Gate, *, watch: bool) -> None:
    async with asyncio.timeout(30) as limit:
        with gate.bound(limit, watch=watch):
            await asyncio.sleep(30)


def _refusal(gate: Gate) -> Reason:
    with pytest.raises(ArgosyError) as caught, gate.admit():
        pass
    assert caught.value.retry_after_s
    return caught.value.reason
