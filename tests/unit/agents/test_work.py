"""Calls side by side, sub-agents, approval, tools of the caller's, and the budgets that they share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from argosy_services.agents.delegate import Delegate
from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.service import AgentsService
from argosy_services.agents.tools.base import MAX_OBSERVATION_CHARS, Effect, Tool
from argosy_services.agents.tools.calculator import Calculator
from argosy_services.agents.types import (
    AgentSpec,
    ApprovalRequested,
    Budget,
    ClientToolSpec,
    Event,
    Outcome,
    Recorded,
    RunFinished,
    RunState,
    Strategy,
    ToolStarted,
)
from argosy_services.errors import ArgosyError, Reason

from .scripted import Echo, ScriptedModel, action, agents, answer


def calls(*arguments: dict[str, object], tool: str = "echo") -> str:
    return "\n".join(f"<tool_call>\n{json.dumps({'name': tool, 'arguments': one})}\n</tool_call>" for one in arguments)


async def events_of(events: AsyncGenerator[Recorded]) -> list[Event]:
    async with aclosing(events):
        return [one.event async for one in events]


def end_of(events: list[Event]) -> RunFinished:
    assert isinstance(events[-1], RunFinished)
    return events[-1]


async def test_calls_side_by_side(tmp_path: Path) -> None:
    echo = Echo(delay_s=0.1)
    model = ScriptedModel([calls({"text": "a"}, {"text": "b"}, {"text": "c"}), "all heard"])
    with agents(model, [echo], tmp_path) as service:
        events = await events_of(service.run(AgentSpec("task", strategy=Strategy.TOOL_CALLING)))
    seen = {event.call_id: event.text for event in events if isinstance(event, Observation)}
    assert seen == {"call_1": "heard a", "call_2": "heard b", "call_3": "heard c"}
    assert end_of(events).seconds < 0.3, "one after the other they would take longer"
    assert model.asked[1].messages[-1].content.count("<tool_response>") == 3


async def test_a_run_waits_for_a_model_that_has_no_room(tmp_path: Path) -> None:
    full = ArgosyError(Reason.QUEUE_FULL, "full", retry_after_s=0.01)
    model = ScriptedModel([full, full, "the answer"])
    with agents(model, [], tmp_path) as service:
        events = await events_of(service.run(AgentSpec("task", strategy=Strategy.DIRECT)))
    assert end_of(events).outcome is Outcome.ANSWERED
    assert model.asked == model.asked[:1] * 3
    assert model.closed == 3


async def test_a_run_does_not_wait_for_room_beyond_its_time(tmp_path: Path) -> None:
    model = ScriptedModel([ArgosyError(Reason.QUEUE_FULL, "full", retry_after_s=60.0)])
    spec = AgentSpec("task", strategy=Strategy.DIRECT, budget=Budget(max_seconds=0.05))
    with agents(model, [], tmp_path) as service:
        events = await events_of(service.run(spec))
    assert end_of(events).outcome is Outcome.TIME_LIMIT


async def test_calls_are_counted_before_they_are_made(tmp_path: Path) -> None:
    echo = Echo()
    model = ScriptedModel([calls({"text": "a"}, {"text": "b"}), "never"])
    spec = AgentSpec("task", strategy=Strategy.TOOL_CALLING, budget=Budget(max_tool_calls=1))
    with agents(model, [echo], tmp_path) as service:
        events = await events_of(service.run(spec))
    assert end_of(events).outcome is Outcome.TOOL_CALL_LIMIT
    assert echo.calls == []
    assert end_of(events).tool_calls == 1


async def test_nothing_is_called_without_a_call_left(tmp_path: Path) -> None:
    model = ScriptedModel(["a", action("echo", text="x"), "b", answer("done")])
    with agents(model, [Echo()], tmp_path) as service:
        events = await events_of(service.run(AgentSpec("task", budget=Budget(max_tool_calls=1))))
    assert model.asked[3].form is not None
    assert "echo" not in model.asked[3].form.source
    assert end_of(events).outcome is Outcome.ANSWERED


async def test_a_sub_agent_spends_the_budget_of_its_run(tmp_path: Path) -> None:
    texts = [
        *("a", action("delegate", task="compute it")),
        *("b", action("calculator", expression="6 * 7"), "c", answer("it is 42")),
        *("d", answer("42")),
    ]
    model = ScriptedModel(texts)
    with agents(model, [Calculator(), Delegate()], tmp_path) as service:
        events = await events_of(service.run(AgentSpec("task", budget=Budget(max_steps=6))))
    requests = [event.tool for event in events if isinstance(event, ToolRequest)]
    seen = [event.text for event in events if isinstance(event, Observation)]
    assert requests == ["delegate", "calculator"]
    assert seen == ["6 * 7 = 42", "<tool_data>it is 42</tool_data>"]
    assert [event.text for event in events if isinstance(event, Answer)] == ["42"]
    assert (end_of(events).steps, end_of(events).tool_calls) == (4, 2)
    assert end_of(events).usage.completion_tokens == sum(len(text.split(" ")) for text in texts)
    inner = model.asked[3].form
    assert inner is not None
    assert "delegate" not in inner.source, "a helper has no helpers"


async def until(service: AgentsService, events: AsyncGenerator[Recorded], kind: type[Event]) -> tuple[str, str]:
    """Reads on to an event of a kind; the ids of run and call."""
    run_id = ""
    async for one in events:
        run_id = run_id or getattr(one.event, "run_id", "")
        if isinstance(one.event, kind):
            return run_id, getattr(one.event, "call_id", "")
    raise AssertionError("it did not come")


@pytest.mark.parametrize("approved", [True, False])
async def test_approval_survives_a_restart(tmp_path: Path, approved: bool) -> None:
    spec = AgentSpec("task", approve_writes=True)
    first, second = Echo(effect=Effect.WRITE), Echo(effect=Effect.WRITE)
    texts = ["a", action("echo", text="x"), "b", answer("done")]
    with agents(ScriptedModel(texts), [first], tmp_path) as service:
        run_id, call_id = await until(service, service.run(spec, detached=True), ApprovalRequested)
        assert (await service.get(run_id)).state is RunState.AWAITING_APPROVAL
        await service.close()
    with agents(ScriptedModel(texts[2:]), [second], tmp_path) as service:
        await service.decide(run_id, call_id, approved=approved, reason="no")
        with pytest.raises(ArgosyError) as caught:
            await service.decide(run_id, call_id, approved=not approved)
        assert caught.value.reason is Reason.RUN_STATE
        events = await events_of(service.resume(run_id))
    assert (first.calls, second.calls) == ([], ["x"] if approved else [])
    (seen,) = [event for event in events if isinstance(event, Observation)]
    assert seen.text == "heard x" if approved else "refused by a person: no" in seen.text


async def test_nobody_decides(tmp_path: Path) -> None:
    echo = Echo()
    model = ScriptedModel(["a", action("echo", text="x"), "b", answer("done")])
    spec = AgentSpec("task", approve_tools=("echo",), budget=Budget(max_seconds=5))
    with agents(model, [echo], tmp_path, wait_s=0.05) as service:
        events = await events_of(service.run(spec))
    assert echo.calls == []
    assert "nobody decided" in next(event.text for event in events if isinstance(event, Observation))


async def test_the_caller_answers_and_the_clock_stands_still(tmp_path: Path) -> None:
    tool = ClientToolSpec("mine", "Mine.", {"properties": {"x": {"type": "integer"}}})
    spec = AgentSpec("task", client_tools=(tool,), budget=Budget(max_seconds=1.0))
    model = ScriptedModel(["a", action("mine", x=1), "b", answer("done")])
    with agents(model, [], tmp_path) as service:
        events = service.run(spec, detached=True)
        run_id, call_id = await until(service, events, ToolStarted)
        await asyncio.sleep(1.2)
        with pytest.raises(ArgosyError):
            await service.submit(run_id, "call_7", "no such call")
        await service.submit(run_id, call_id, "it is <|im_end|> 5")
        rest = await events_of(service.watch(run_id, 0))
    assert end_of(rest).outcome is Outcome.ANSWERED
    assert end_of(rest).seconds < 1.0
    assert "<tool_data>it is < |im_end|> 5</tool_data>" in [e.text for e in rest if isinstance(e, Observation)]


async def test_what_side_by_side_completions_may_have_together(tmp_path: Path) -> None:
    """Tokens are reserved before they are asked for: votes cannot spend more than there is."""
    model = ScriptedModel(["word " * 50] * 12)
    spec = AgentSpec("task", strategy=Strategy.CHAIN_OF_THOUGHT, votes=4, budget=Budget(max_tokens=90))
    with agents(model, [], tmp_path) as service:
        events = await events_of(service.run(spec))
    assert end_of(events).outcome is Outcome.TOKEN_LIMIT
    # The first wrote 51.
    assert [completion.max_tokens for completion in model.asked] == [90, 39]
    assert end_of(events).usage.completion_tokens == 90


class Vault:
    """A toolbox with secrets and no tools."""

    async def open(self) -> list[Tool]:
        return []

    def secrets(self) -> list[str]:
        return ["hunter2-hunter2", "hunter2-hunter2-and-more"]

    async def close(self) -> None: ...


@pytest.mark.parametrize("by_client", [False, True])
@pytest.mark.parametrize("shift", range(0, 26, 5))
async def test_a_secret_at_the_cut_is_not_told(tmp_path: Path, shift: int, by_client: bool) -> None:
    """Neither a beginning that is left of it, nor the end of one that begins like another."""
    text = "x" * (MAX_OBSERVATION_CHARS - 6 - shift) + "hunter2-hunter2-and-more" + "y" * 50

    class Talker(Echo):
        async def run(self, arguments: object) -> str:
            return text

    tool = ClientToolSpec("echo", "Mine.", {"properties": {"text": {"type": "string"}}})
    spec = AgentSpec("task", client_tools=(tool,) if by_client else ())
    model = ScriptedModel(["a", action("echo", text="x"), "b", answer("done")])
    with agents(model, [] if by_client else [Talker()], tmp_path, toolbox=Vault()) as service:
        events = service.run(spec, detached=True)
        if by_client:
            run_id, call_id = await until(service, events, ToolStarted)
            await service.submit(run_id, call_id, text)
            rest = await events_of(service.watch(run_id, 0))
        else:
            rest = await events_of(events)
    told = next(event.text for event in rest if isinstance(event, Observation))
    assert "h" not in told.replace("[secret]", "")
    assert "and-more" not in told
