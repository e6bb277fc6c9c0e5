"""Runs outlive their server: what is recorded is not done again, and effects happen at most once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.service import AgentsService
from argosy_services.agents.tools.base import Effect
from argosy_services.agents.types import (
    AgentSpec,
    Budget,
    ClientToolSpec,
    Event,
    ModelReplied,
    Outcome,
    Recorded,
    RunFinished,
    RunInfo,
    RunResumed,
    RunState,
    Strategy,
    ThoughtDelta,
    ToolStarted,
)
from argosy_services.errors import ArgosyError, Reason

from .scripted import Echo, ScriptedModel, action, agents, answer

TEXTS = ["a b", action("echo", text="one"), "c", action("echo", text="two"), "d", answer("done")]
CALLS = ["one", "two"]


async def until_stopped(service: AgentsService, events: AsyncGenerator[Recorded], after: int) -> str:
    """Follows a run until `after` events have come, and stops the server then. The run's id."""
    run_id = getattr((await anext(events)).event, "run_id", "")

    async def follow() -> None:
        async for one in events:
            if one.sequence >= after:
                await service.close()

    if after == 1:
        await service.close()
    with pytest.raises(ArgosyError, match="the server stops"):
        await follow()
    return run_id


async def all_of(events: AsyncGenerator[Recorded]) -> list[Recorded]:
    async with aclosing(events):
        return [one async for one in events]


async def give_what_is_left(service: AgentsService, run_id: str, *, tenant: str = "") -> None:
    """Lets the scripted model go on behind what is recorded of a run."""
    recorded = await all_of(service.replay(run_id, tenant=tenant))
    model = service._model
    assert isinstance(model, ScriptedModel)
    model.texts = TEXTS[len(kinds(recorded, ModelReplied)) :]


def kinds(recorded: list[Recorded], kind: type[Event]) -> list[Event]:
    return [one.event for one in recorded if isinstance(one.event, kind)]


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("after", range(1, 15))
async def test_a_run_goes_on_wherever_it_was_stopped(tmp_path: Path, effect: Effect, after: int) -> None:
    first, second = Echo(effect=effect), Echo(effect=effect)
    model = ScriptedModel(TEXTS)
    with agents(model, [first], tmp_path) as service:
        run_id = await until_stopped(service, service.run(AgentSpec("task"), tenant="me"), after)
        assert (await service.get(run_id, tenant="me")).state is RunState.RUNNING
    with agents(ScriptedModel([]), [second], tmp_path) as service:
        known = len([one async for one in service.replay(run_id, tenant="me")])
        await give_what_is_left(service, run_id, tenant="me")
        resumed = await all_of(service.resume(run_id, tenant="me"))
        whole = await all_of(service.replay(run_id, tenant="me"))
        info = await service.get(run_id, tenant="me")
    assert isinstance(resumed[0].event, RunResumed)
    assert resumed[0].sequence == known + 1
    assert [one.sequence for one in whole] == list(range(1, len(whole) + 1))
    assert (info.state, info.outcome, info.answer) == (RunState.FINISHED, Outcome.ANSWERED, "done")
    calls = first.calls + second.calls
    seen = [str(event.text) for event in kinds(whole, Observation) if isinstance(event, Observation)]
    assert len(kinds(whole, ToolRequest)) == len(seen) == 2
    if effect is Effect.READ:
        assert sorted(set(calls)) == sorted(CALLS)
        assert seen == ["heard one", "heard two"]
    else:
        assert len(calls) == len(set(calls)), "no effect happened twice"
        for text, told in zip(CALLS, seen, strict=True):
            # A call is known to have happened, or told to be uncertain; none is passed over in silence.
            assert (told == f"heard {text}" and text in calls) or "may or may not have taken effect" in told
    end = whole[-1].event
    assert isinstance(end, RunFinished)
    assert (end.steps, end.tool_calls) == (3, 2)
    assert end.usage.completion_tokens == sum(len(text.split(" ")) for text in TEXTS)


async def test_a_call_that_was_begun_is_not_made_again(tmp_path: Path) -> None:
    slow, second = Echo(effect=Effect.WRITE, delay_s=30), Echo(effect=Effect.WRITE)
    with agents(ScriptedModel(TEXTS), [slow], tmp_path) as service:
        events = service.run(AgentSpec("task"), detached=True)
        run_id = getattr((await anext(events)).event, "run_id", "")
        async with asyncio.timeout(5):
            while not slow.calls:
                await asyncio.sleep(0.01)
        await service.close()
    assert slow.calls == ["one"]
    with agents(ScriptedModel(TEXTS[2:]), [second], tmp_path) as service:
        whole = await all_of(service.resume(run_id))
    assert second.calls == ["two"]
    observation = next(one.event for one in whole if isinstance(one.event, Observation))
    assert observation.is_error
    assert "may or may not have taken effect" in observation.text


async def test_the_budget_goes_on_where_it_was(tmp_path: Path) -> None:
    spec = AgentSpec("task", budget=Budget(max_tokens=sum(len(text.split(" ")) for text in TEXTS[:4])))
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        run_id = await until_stopped(service, service.run(spec), 8)
    with agents(ScriptedModel([]), [Echo()], tmp_path) as service:
        await give_what_is_left(service, run_id)
        end = (await all_of(service.resume(run_id)))[-1].event
    assert isinstance(end, RunFinished)
    assert end.outcome is Outcome.TOKEN_LIMIT
    assert end.usage.completion_tokens == spec.budget.max_tokens


async def test_two_servers_do_not_work_on_one_run(tmp_path: Path) -> None:
    """The second takes over; the first finds out before its next effect."""
    first, second = Echo(effect=Effect.WRITE), Echo(effect=Effect.WRITE)
    held = asyncio.Event()
    model = ScriptedModel(TEXTS)

    async def hold(_: object) -> None:
        if len(model.asked) == 2:
            await held.wait()

    model.before = hold
    with agents(model, [first], tmp_path) as one, agents(ScriptedModel(TEXTS[1:]), [second], tmp_path) as other:
        events = one.run(AgentSpec("task"))
        run_id = getattr((await anext(events)).event, "run_id", "")
        async with asyncio.timeout(5):
            while len(model.asked) < 2:
                await asyncio.sleep(0.01)
        taken = await all_of(other.resume(run_id))
        held.set()
        with pytest.raises(ArgosyError, match="goes on at another server") as caught:
            await all_of(events)
        assert caught.value.reason is Reason.RUN_STATE
        assert isinstance(taken[-1].event, RunFinished)
    assert (first.calls, second.calls) == ([], CALLS)


async def test_what_is_left_at_one_server_reaches_the_run_at_another(tmp_path: Path) -> None:
    """Replicas on one SQLite file: a call goes to any of them, and only one works on the run."""
    tool = ClientToolSpec("mine", "Mine.", {"properties": {"x": {"type": "integer"}}})
    model = ScriptedModel(["a", action("mine", x=1), "b", answer("done")])
    with agents(model, [], tmp_path, shared=True) as one, agents(ScriptedModel([]), [], tmp_path, shared=True) as other:
        events = one.run(AgentSpec("task", client_tools=(tool,)))
        seen = [await anext(events)]
        while not isinstance(seen[-1].event, ToolStarted):
            seen.append(await anext(events))
        run_id, call_id = getattr(seen[0].event, "run_id", ""), seen[-1].event.call_id
        watching = asyncio.create_task(all_of(other.watch(run_id, 0)))
        await asyncio.sleep(0.1)
        assert not watching.done()
        await other.submit(run_id, call_id, "5")
        seen += await asyncio.wait_for(all_of(events), 5)
        watched = await asyncio.wait_for(watching, 5)
    observed = [event.text for event in kinds(seen, Observation) if isinstance(event, Observation)]
    assert observed == ["<tool_data>5</tool_data>"]
    assert isinstance(watched[-1].event, RunFinished)
    assert [one.sequence for one in watched] == [one.sequence for one in seen]


async def test_a_run_that_waits_learns_that_it_was_cancelled_at_another_server(tmp_path: Path) -> None:
    """It would hold its place, and its caller, for as long as it may wait."""
    tool = ClientToolSpec("mine", "Mine.", {"properties": {"x": {"type": "integer"}}})
    model = ScriptedModel(["a", action("mine", x=1), "b", answer("done")])
    with agents(model, [], tmp_path, shared=True) as one, agents(ScriptedModel([]), [], tmp_path, shared=True) as other:
        events = one.run(AgentSpec("task", client_tools=(tool,)))
        first = await anext(events)
        async for event in events:
            if isinstance(event.event, ToolStarted):
                break
        assert (await other.cancel(getattr(first.event, "run_id", ""))).outcome is Outcome.CANCELLED
        with pytest.raises(ArgosyError, match="was ended there"):
            await asyncio.wait_for(all_of(events), 5)
        assert one.running == 0


async def test_a_failure_interrupts_and_the_run_can_go_on(tmp_path: Path) -> None:
    broken = ArgosyError(Reason.ENGINE_FAILED, "the engine is gone", retry_after_s=1)
    with agents(ScriptedModel([*TEXTS[:2], broken]), [Echo()], tmp_path) as service:
        with pytest.raises(ArgosyError, match="engine is gone"):
            await all_of(service.run(AgentSpec("task")))
        (info,) = await service.list(before="", limit=5)
        assert (info.state, info.error) == (RunState.INTERRUPTED, "the engine is gone")
        service._model.texts = ["", "", "", *TEXTS[2:]]  # type: ignore[attr-defined]
        events = await all_of(service.resume(info.run_id))
        assert kinds(events, Answer) == [Answer(3, "done")]
        assert (await service.get(info.run_id)).error == ""


async def test_a_finished_run_is_only_shown_again(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        events = await all_of(service.run(AgentSpec("task"), tenant="me"))
        run_id = getattr(events[0].event, "run_id", "")
        assert await all_of(service.replay(run_id, tenant="me")) == events
        assert await all_of(service.watch(run_id, 5, tenant="me")) == events[5:]
        with pytest.raises(ArgosyError, match="ReplayRun") as caught:
            await all_of(service.resume(run_id, tenant="me"))
        assert caught.value.reason is Reason.RUN_STATE
        for other in (service.replay(run_id), service.watch(run_id, 0, tenant="you"), service.resume(run_id)):
            with pytest.raises(ArgosyError, match="no run") as caught:
                await all_of(other)
            assert caught.value.reason is Reason.RUN_NOT_FOUND


async def test_a_watcher_sees_what_the_caller_sees(tmp_path: Path) -> None:
    model = ScriptedModel(TEXTS, before=lambda _: asyncio.sleep(0.01))
    with agents(model, [Echo()], tmp_path) as service:
        own, others = [], []
        async for one in service.run(AgentSpec("task")):
            own.append(one)
            if one.sequence == 3:
                run_id = getattr(own[0].event, "run_id", "")
                watching = asyncio.create_task(all_of(service.watch(run_id, 1)))
        others = await asyncio.wait_for(watching, 5)
    assert others == own[1:]
    assert any(isinstance(one.event, ThoughtDelta) for one in others)


async def test_a_detached_run_goes_on_without_its_caller(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        events = service.run(AgentSpec("task"), detached=True)
        run_id = getattr((await anext(events)).event, "run_id", "")
        await events.aclose()
        watched = await asyncio.wait_for(all_of(service.watch(run_id, 0)), 5)
        assert isinstance(watched[-1].event, RunFinished)


async def test_cancelling(tmp_path: Path) -> None:
    model = ScriptedModel(TEXTS, before=lambda _: asyncio.sleep(30))
    with agents(model, [Echo()], tmp_path) as service:
        events = service.run(AgentSpec("task"), detached=True)
        run_id = getattr((await anext(events)).event, "run_id", "")
        await asyncio.sleep(0.05)
        info = await service.cancel(run_id)
        assert (info.state, info.outcome, model.closed) == (RunState.FINISHED, Outcome.CANCELLED, 1)
        assert service.running == 0
        assert (await service.cancel(run_id)).outcome is Outcome.CANCELLED


async def test_a_run_that_nobody_works_on_is_cancelled(tmp_path: Path) -> None:
    with agents(ScriptedModel(TEXTS), [Echo()], tmp_path) as service:
        run_id = await until_stopped(service, service.run(AgentSpec("task")), 4)
        assert (await service.cancel(run_id)).outcome is Outcome.CANCELLED
        assert isinstance((await all_of(service.replay(run_id)))[-1].event, RunFinished)


async def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    with agents(ScriptedModel([]), [], tmp_path) as service:
        service._store._keep_runs = 2
        for _ in range(5):
            service._model.texts = [answer("x")] * 2  # type: ignore[attr-defined]
            service._model.asked.clear()  # type: ignore[attr-defined]
            await all_of(service.run(AgentSpec("task")))
        runs = await service.list(before="", limit=10)
    assert len(runs) == 3, "two that had ended, and the one that came then"
    assert [run.run_id for run in runs] == sorted((run.run_id for run in runs), reverse=True)


async def test_an_answer_with_a_nul_can_be_kept(tmp_path: Path) -> None:
    """PostgreSQL has no such texts; there is one form of it everywhere."""
    spec = AgentSpec("task\0", strategy=Strategy.DIRECT)
    with agents(ScriptedModel(["four\0teen"]), [], tmp_path) as service:
        events = await all_of(service.run(spec))
        (info,) = await service.list(before="", limit=2)
        with pytest.raises(ArgosyError) as caught:
            await service.get("\0")
    assert kinds(events, RunFinished)
    assert (info.answer, info.spec.task) == ("four\ufffdteen", "task\0")
    assert caught.value.reason is Reason.RUN_NOT_FOUND


async def test_runs_that_nobody_touches_are_forgotten_too(tmp_path: Path) -> None:
    """Such as no server goes on with: their number has the same bound, once they cannot be waiting any more."""
    with agents(ScriptedModel([]), [], tmp_path) as service:
        store = service._store
        store._keep_runs = 2
        now = time.time()
        for place, age in enumerate([30, 20, 10, 0.5, 0]):
            then = now - age * 86_400
            state = RunState.AWAITING_APPROVAL if place % 2 else RunState.RUNNING
            await store.create(RunInfo(f"run{place}", state, AgentSpec("task"), then, then), "")
        await store.create(RunInfo("run9", RunState.RUNNING, AgentSpec("task"), now, now), "")
        runs = await store.list("", before="", limit=10)
        assert [run.run_id for run in runs] == ["run9", "run4", "run3", "run2", "run1"]
        await store.append("run1", [Recorded(1, RunResumed(0))], RunState.RUNNING)
        await store.append("run3", [Recorded(1, RunResumed(0))], RunState.FINISHED, outcome=Outcome.CANCELLED)
        await store.append("run4", [Recorded(1, RunResumed(0))], RunState.FINISHED, outcome=Outcome.CANCELLED)
        await store.create(RunInfo("run99", RunState.RUNNING, AgentSpec("task"), now, now), "")
        runs = await store.list("", before="", limit=10)
        assert [run.run_id for run in runs] == ["run99", "run9", "run4", "run3", "run1"], "one that goes on is kept"
