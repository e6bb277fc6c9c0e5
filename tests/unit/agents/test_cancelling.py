"""Runs end when their owner says so, and are gone on with by one, whoever else is about it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from argosy_services.agents.ports import Completion
from argosy_services.agents.service import AgentsService
from argosy_services.agents.store import RunTakenError
from argosy_services.agents.tools.base import Effect
from argosy_services.agents.types import AgentSpec, ModelReplied, Outcome, Recorded, RunFinished, RunInfo, RunState
from argosy_services.errors import ArgosyError, Reason, model_not_found

from .scripted import Echo, ScriptedModel, agents
from .test_durability import CALLS, TEXTS, all_of, give_what_is_left, until_stopped


def holding(texts: Sequence[str], place: int) -> tuple[ScriptedModel, asyncio.Event]:
    """A model that waits at a completion until it is let go."""
    model, held = ScriptedModel(texts), asyncio.Event()

    async def hold(_: Completion) -> None:
        if len(model.asked) == place:
            await held.wait()

    model.before = hold
    return model, held


async def begun(service: AgentsService, model: ScriptedModel, completions: int) -> str:
    """A detached run that has come to a completion."""
    events = service.run(AgentSpec("task"), detached=True)
    run_id = getattr((await anext(events)).event, "run_id", "")
    await events.aclose()
    async with asyncio.timeout(5):
        while len(model.asked) < completions:
            await asyncio.sleep(0.01)
    return run_id


async def following(service: AgentsService, run_id: str) -> asyncio.Task[list[Recorded]]:
    """Somebody who watches a run to its end, and has seen its first event."""
    began = asyncio.Event()

    async def follow() -> list[Recorded]:
        seen: list[Recorded] = []
        async for one in service.watch(run_id, 0):
            seen.append(one)
            began.set()
        return seen

    task = asyncio.create_task(follow())
    await asyncio.wait_for(began.wait(), 5)
    return task


async def test_a_cancel_that_is_overtaken_is_made_again(tmp_path: Path) -> None:
    """The run goes on at another server, which writes while this one is about to."""
    model, held = holding(TEXTS, 2)
    with agents(model, [Echo()], tmp_path) as one, agents(ScriptedModel([]), [Echo()], tmp_path) as other:
        run_id = await begun(one, model, 2)
        read = other._store.events

        async def overtaken(run_id: str, **bounds: int) -> list[Recorded]:
            found = await read(run_id, **bounds)
            if not held.is_set():
                held.set()
                model.before = lambda _: asyncio.sleep(0.02)
                while (await other._store.get(run_id, "")).events == found[-1].sequence:
                    await asyncio.sleep(0.001)
            return found

        other._store.events = overtaken  # type: ignore[method-assign]
        info = await asyncio.wait_for(other.cancel(run_id), 5)
        assert (info.state, info.outcome) == (RunState.FINISHED, Outcome.CANCELLED)
        with pytest.raises(ArgosyError, match="was ended there"):
            await asyncio.wait_for(all_of(one.watch(run_id, 0)), 5)


@pytest.mark.parametrize("gone", ["tool", "model"])
async def test_what_cannot_go_on_can_be_ended(tmp_path: Path, gone: str) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        run_id = await until_stopped(service, service.run(AgentSpec("task", tools=("echo",))), 8)
    model = ScriptedModel([])
    if gone == "model":

        def unknown(name: str) -> str:
            raise model_not_found(name, [])

        model.check_model = unknown  # type: ignore[method-assign]
    with agents(model, [] if gone == "tool" else [Echo()], tmp_path) as service:
        with pytest.raises(ArgosyError, match="no"):
            await all_of(service.resume(run_id))
        info = await service.cancel(run_id)
        recorded = await all_of(service.replay(run_id))
    assert (info.state, info.outcome) == (RunState.FINISHED, Outcome.CANCELLED)
    end, before = recorded[-1].event, recorded[-2]
    assert isinstance(end, RunFinished)
    # What the run had spent is not forgotten.
    replies = [one.event for one in recorded if isinstance(one.event, ModelReplied)]
    assert (end.steps, end.tool_calls, end.seconds) == (replies[-1].step, 1, before.seconds)
    assert end.usage.completion_tokens == sum(reply.usage.completion_tokens for reply in replies) > 0
    assert (info.events, info.updated > info.created) == (len(recorded), True)


async def test_two_who_resume_follow_one_run(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo(effect=Effect.WRITE)], tmp_path) as service:
        run_id = await until_stopped(service, service.run(AgentSpec("task")), 2)
    echo = Echo(effect=Effect.WRITE)
    with agents(ScriptedModel([]), [echo], tmp_path, max_running=1) as service:
        await give_what_is_left(service, run_id)
        both = await asyncio.wait_for(
            asyncio.gather(*(all_of(service.resume(run_id, detached=True)) for _ in range(2))), 10
        )
        assert service.running == 0
    assert echo.calls == CALLS
    for events in both:
        assert isinstance(events[-1].event, RunFinished)
        assert events[-1].event.outcome is Outcome.ANSWERED


async def test_who_comes_second_at_another_server_is_told_so(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        run_id = await until_stopped(service, service.run(AgentSpec("task")), 2)

        async def taken(*_: Any, **__: Any) -> None:
            raise RunTakenError(run_id)

        service._store.append = taken  # type: ignore[method-assign]
        with pytest.raises(ArgosyError, match="another server") as caught:
            await all_of(service.resume(run_id))
        assert (caught.value.reason, service.running) == (Reason.RUN_STATE, 0)
        # The next one is not kept waiting for it.
        with pytest.raises(ArgosyError, match="another server"):
            await asyncio.wait_for(all_of(service.resume(run_id)), 5)


async def test_a_run_that_ends_while_it_is_resumed_is_told_of(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        run_id = await until_stopped(service, service.run(AgentSpec("task")), 2)
        read = service._store.get

        async def late(run_id: str, tenant: str) -> RunInfo:
            info = await read(run_id, tenant)
            service._store.get = read  # type: ignore[method-assign]
            await service.cancel(run_id)
            return info

        service._store.get = late  # type: ignore[method-assign]
        with pytest.raises(ArgosyError, match="ended there") as caught:
            await all_of(service.resume(run_id))
        assert caught.value.reason is Reason.RUN_STATE


@pytest.mark.parametrize("slow", ["append", "interrupt"])
async def test_who_follows_learns_of_the_end_however_often_it_is_asked_for(tmp_path: Path, slow: str) -> None:
    broken = ArgosyError(Reason.ENGINE_FAILED, "the engine is gone")
    model, held = holding([TEXTS[0], TEXTS[1], broken if slow == "interrupt" else TEXTS[2]], 3)
    with agents(model, [Echo()], tmp_path) as service:
        run_id = await begun(service, model, 3)
        watching = await following(service, run_id)
        write, entered = getattr(service._store, slow), asyncio.Event()

        async def slowly(*given: Any, **named: Any) -> None:
            entered.set()
            await asyncio.sleep(0.1)
            await write(*given, **named)

        setattr(service._store, slow, slowly)
        if slow == "interrupt":
            held.set()
        else:
            first = asyncio.create_task(service.cancel(run_id))
        await asyncio.wait_for(entered.wait(), 5)
        again = await asyncio.wait_for(asyncio.gather(*(service.cancel(run_id) for _ in range(3))), 5)
        done, _ = await asyncio.wait({watching}, timeout=5)
        assert done, "who watched waits for ever"
        assert {info.outcome for info in again} == {Outcome.CANCELLED}
        if slow == "interrupt":
            with pytest.raises(ArgosyError, match="engine is gone"):
                await watching
        else:
            assert isinstance((await watching)[-1].event, RunFinished)
            assert (await first).state is RunState.FINISHED
        assert [type(one.event) for one in await all_of(service.replay(run_id))].count(RunFinished) == 1


async def test_a_run_is_ended_before_it_does_anything(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        events = service.run(AgentSpec("task"))
        run_id = getattr((await anext(events)).event, "run_id", "")
        await events.aclose()
        info = await service.get(run_id)
        assert (info.state, info.outcome, service.running) == (RunState.FINISHED, Outcome.CANCELLED, 0)


async def test_a_store_that_fails_is_told_to_who_cancels(tmp_path: Path) -> None:
    model, _ = holding(TEXTS, 1)
    with agents(model, [Echo()], tmp_path) as service:
        run_id = await begun(service, model, 1)
        watching = await following(service, run_id)

        async def broken(*_: Any, **__: Any) -> None:
            raise ArgosyError(Reason.STORE_UNAVAILABLE, "the database is gone")

        service._store.append = broken  # type: ignore[method-assign]
        with pytest.raises(ArgosyError, match="database is gone"):
            await asyncio.wait_for(service.cancel(run_id), 5)
        with pytest.raises(ArgosyError, match="database is gone"):
            await asyncio.wait_for(watching, 5)
