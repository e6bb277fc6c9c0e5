"""The loop of an agent, with a model whose words are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.ports import Completion
from argosy_services.agents.strategies.react import MAX_ACTION_TOKENS, MAX_THOUGHT_TOKENS
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.tools.calculator import Calculator
from argosy_services.agents.types import (
    AgentSpec,
    Budget,
    Event,
    ModelReplied,
    Outcome,
    Recorded,
    RunFinished,
    RunStarted,
    ThoughtDelta,
    Usage,
)
from argosy_services.errors import ArgosyError, Reason

from .scripted import MODEL, Echo, ScriptedModel, action, agents, answer

CALCULATE = action("calculator", expression="17 * 23 + 4")


async def recorded_of(
    model: ScriptedModel, spec: AgentSpec, tools: Sequence[Tool] | None = None
) -> AsyncGenerator[Recorded]:
    with agents(model, [Calculator(), Echo()] if tools is None else tools) as service:
        async with aclosing(service.run(spec)) as events:
            async for one in events:
                yield one


async def events_of(model: ScriptedModel, spec: AgentSpec, tools: Sequence[Tool] | None = None) -> list[Event]:
    """The events of a run, without those that only count tokens."""
    events = [one.event async for one in recorded_of(model, spec, tools)]
    return [event for event in events if not isinstance(event, ModelReplied)]


def finished(events: list[Event]) -> RunFinished:
    assert [type(event) for event in events].count(RunFinished) == 1
    last = events[-1]
    assert isinstance(last, RunFinished)
    return last


def offered(completion: Completion) -> list[str]:
    assert completion.form is not None
    return [one["properties"]["tool"]["const"] for one in json.loads(completion.form.source)["anyOf"]]


async def test_a_run_from_task_to_answer() -> None:
    model = ScriptedModel(["I need it", CALCULATE, "I have it", answer("17 * 23 + 4 = 395")])
    budget = Budget(max_steps=4, max_tokens=500, max_seconds=30)
    events = await events_of(model, AgentSpec("What is 17 * 23 + 4?", budget=budget))
    started = next(event for event in events if isinstance(event, RunStarted))
    observation = next(event for event in events if isinstance(event, Observation))
    end = finished(events)
    written = 3 + len(CALCULATE.split(" ")) + 3 + len(answer("17 * 23 + 4 = 395").split(" "))
    assert events == [
        RunStarted(started.run_id, MODEL, ("calculator", "echo"), budget, "react@1"),
        ThoughtDelta(1, "I"),
        ThoughtDelta(1, " need"),
        ThoughtDelta(1, " it"),
        ToolRequest(1, "call_1", "calculator", {"expression": "17 * 23 + 4"}),
        Observation(1, "call_1", "17 * 23 + 4 = 395", is_error=False, seconds=observation.seconds),
        ThoughtDelta(2, "I"),
        ThoughtDelta(2, " have"),
        ThoughtDelta(2, " it"),
        Answer(2, "17 * 23 + 4 = 395"),
        RunFinished(Outcome.ANSWERED, 2, 1, Usage(400, 160, written), end.seconds),
    ]
    assert 0 < observation.seconds < end.seconds < 5
    assert model.closed == 4


async def test_what_the_model_is_asked() -> None:
    model = ScriptedModel(["I need it", CALCULATE, "I have it", answer("395")])
    spec = AgentSpec("What is it?", temperature=0.5, seed=2**64 - 2, adapter="mine")
    await events_of(model, spec)
    think, act, think_again, act_again = model.asked
    assert (think.prefix, think.stop, think.max_tokens) == ("Thought:", ("\n",), MAX_THOUGHT_TOKENS)
    assert think.form is None
    assert think.messages[-1].content == "What is it?"
    assert (act.prefix, act.stop, act.max_tokens) == ("Thought: I need it\nAction:\n", (), MAX_ACTION_TOKENS)
    assert act.messages == think.messages
    assert think_again.messages[: len(think.messages)] == think.messages
    assert [message.content for message in think_again.messages[len(think.messages) :]] == [
        f"Thought: I need it\nAction:\n{CALCULATE}",
        "Observation: 17 * 23 + 4 = 395",
    ]
    assert act_again.prefix == "Thought: I have it\nAction:\n"
    assert {(one.model, one.adapter, one.temperature) for one in model.asked} == {(MODEL, "mine", 0.5)}
    assert [one.seed for one in model.asked] == [2**64 - 1, 0, 1, 2]
    assert len({one.deadline for one in model.asked}) == 1
    assert act.deadline is not None


async def test_the_last_step_offers_the_answer_only() -> None:
    model = ScriptedModel(["a", CALCULATE, "b", action("calculator", expression="1 + 1"), "c", answer("395")])
    events = await events_of(model, AgentSpec("task", budget=Budget(max_steps=3)))
    assert [offered(completion) for completion in model.asked[1::2]] == [
        ["calculator", "echo", "final_answer"],
        ["calculator", "echo", "final_answer"],
        ["final_answer"],
    ]
    assert finished(events).outcome is Outcome.ANSWERED
    assert [event.call_id for event in events if isinstance(event, ToolRequest)] == ["call_1", "call_2"]


async def test_a_call_that_was_made_before_becomes_an_answer() -> None:
    fails = action("echo", text="fail")
    model = ScriptedModel(["a", fails, "b", fails, "c", CALCULATE, "d", CALCULATE, answer("395")])
    events = await events_of(model, AgentSpec("task", budget=Budget(max_steps=8)))
    every = ["calculator", "echo", "final_answer"]
    actions = [offered(completion) for completion in model.asked if completion.form is not None]
    assert actions == [every, every, every, every, ["final_answer"]]
    assert [event.step for event in events if isinstance(event, ToolRequest)] == [1, 2, 3]
    assert events[-2] == Answer(4, "395")
    assert finished(events).outcome is Outcome.ANSWERED


@pytest.mark.parametrize("before", [[], ["a", action("echo", text="fail")]])
async def test_step_limit_is_an_answer_without_a_result(before: list[str]) -> None:
    model = ScriptedModel([*before, "I must guess", answer("perhaps 4")])
    events = await events_of(model, AgentSpec("task", budget=Budget(max_steps=1 + len(before) // 2)))
    assert events[-2] == Answer(1 + len(before) // 2, "perhaps 4")
    assert finished(events).outcome is Outcome.STEP_LIMIT


async def test_without_tools_the_first_answer_counts() -> None:
    events = await events_of(ScriptedModel(["a", answer("hello")]), AgentSpec("hi", budget=Budget(max_steps=1)), [])
    assert finished(events).outcome is Outcome.ANSWERED


async def test_an_answer_may_come_without_a_tool() -> None:
    events = await events_of(ScriptedModel(["I know it", answer("Paris")]), AgentSpec("capital?"))
    assert (finished(events).outcome, finished(events).tool_calls) == (Outcome.ANSWERED, 0)


async def test_token_limit_in_an_action_is_no_parse_error() -> None:
    model = ScriptedModel(["one two three", CALCULATE])
    events = await events_of(model, AgentSpec("task", budget=Budget(max_tokens=5)))
    assert model.asked[1].max_tokens == 2
    assert finished(events).outcome is Outcome.TOKEN_LIMIT
    assert finished(events).usage.completion_tokens == 5
    assert not any(isinstance(event, ToolRequest | Answer) for event in events)


async def test_token_limit_after_a_thought() -> None:
    model = ScriptedModel(["one two three"])
    events = await events_of(model, AgentSpec("task", budget=Budget(max_tokens=3)))
    assert finished(events).outcome is Outcome.TOKEN_LIMIT
    assert len(model.asked) == 1


async def test_token_limit_after_a_tool() -> None:
    written = 1 + len(CALCULATE.split(" "))
    model = ScriptedModel(["one", CALCULATE])
    events = await events_of(model, AgentSpec("task", budget=Budget(max_tokens=written)))
    assert isinstance(events[-2], Observation)
    assert (finished(events).outcome, finished(events).steps) == (Outcome.TOKEN_LIMIT, 1)


async def test_a_long_thought_is_cut_and_goes_on() -> None:
    model = ScriptedModel(["so " * 60 + "far", answer("yes")])
    events = await events_of(model, AgentSpec("task"))
    assert sum(isinstance(event, ThoughtDelta) for event in events) == MAX_THOUGHT_TOKENS
    assert finished(events).outcome is Outcome.ANSWERED


@pytest.mark.parametrize("slow", [0, 1])
async def test_time_limit_while_the_model_writes(slow: int) -> None:
    model = ScriptedModel(["a thought", answer("never")])
    model.before = lambda _: asyncio.sleep(30 if len(model.asked) == slow + 1 else 0)
    events = await asyncio.wait_for(events_of(model, AgentSpec("task", budget=Budget(max_seconds=0.5))), 5)
    assert finished(events).outcome is Outcome.TIME_LIMIT
    assert finished(events).seconds == pytest.approx(0.5, abs=0.5)
    assert model.closed == slow + 1


async def test_time_limit_that_the_model_notices_first() -> None:
    model = ScriptedModel([ArgosyError(Reason.DEADLINE_EXCEEDED, "late")])
    events = await events_of(model, AgentSpec("task"))
    assert finished(events).outcome is Outcome.TIME_LIMIT


async def test_time_limit_in_a_tool() -> None:
    model = ScriptedModel(["a", action("echo", text="hi")])
    spec = AgentSpec("task", budget=Budget(max_seconds=0.1))
    events = await asyncio.wait_for(events_of(model, spec, [Echo(delay_s=30)]), 5)
    assert isinstance(events[-2], Observation)
    assert events[-2].is_error
    assert finished(events).outcome is Outcome.TIME_LIMIT


async def test_a_failing_tool_does_not_end_the_run() -> None:
    model = ScriptedModel(["a", action("echo", text="fail"), "b", action("echo", text="hi"), "c", answer("done")])
    events = await events_of(model, AgentSpec("task"))
    assert [(event.text, event.is_error) for event in events if isinstance(event, Observation)] == [
        ("nothing to repeat; send another text", True),
        ("heard hi", False),
    ]
    assert model.asked[2].messages[-1].content == "Observation: Error: nothing to repeat; send another text"
    assert finished(events).outcome is Outcome.ANSWERED


async def test_a_slow_tool_does_not_end_the_run() -> None:
    model = ScriptedModel(["a", action("echo", text="hi"), "b", answer("no luck")])
    events = await events_of(model, AgentSpec("task"), [Echo(delay_s=30, timeout_s=0.02)])
    (observation,) = [event for event in events if isinstance(event, Observation)]
    assert (observation.text, observation.is_error) == ("echo did not answer within 0.02 s", True)
    assert finished(events).outcome is Outcome.ANSWERED


async def test_invalid_arguments_are_told_and_not_executed() -> None:
    echo = Echo()
    model = ScriptedModel(["a", action("echo", text="x" * 21), "b", answer("oh")])
    events = await events_of(model, AgentSpec("task"), [echo])
    (observation,) = [event for event in events if isinstance(event, Observation)]
    assert observation.is_error
    assert "at most 20" in observation.text
    assert echo.calls == []


async def test_a_fault_of_a_tool_raises() -> None:
    model = ScriptedModel(["a", action("echo", text="bug")])
    with pytest.raises(RuntimeError, match="a fault of ours"):
        await events_of(model, AgentSpec("task"))


@pytest.mark.parametrize(
    "text", ["no json", "[]", '{"tool": "echo"}', action("shell", command="ls"), '{"tool": "echo", "arguments": []}']
)
async def test_a_model_that_breaks_the_schema_is_a_fault(text: str) -> None:
    with pytest.raises(ArgosyError, match="broke the schema") as caught:
        await events_of(ScriptedModel(["a", text]), AgentSpec("task"))
    assert caught.value.reason is Reason.INTERNAL


async def test_a_tool_is_not_called_in_the_last_step() -> None:
    echo = Echo()
    with pytest.raises(ArgosyError, match="broke the schema"):
        await events_of(
            ScriptedModel(["a", action("echo", text="hi")]), AgentSpec("task", budget=Budget(max_steps=1)), [echo]
        )
    assert echo.calls == []


async def test_what_the_model_raises_passes_through() -> None:
    error = ArgosyError(Reason.ENGINE_FAILED, "gone")
    with pytest.raises(ArgosyError, match="gone"):
        await events_of(ScriptedModel(["a", error]), AgentSpec("task"))


async def test_unknown_model() -> None:
    with pytest.raises(ArgosyError) as caught:
        await events_of(ScriptedModel([]), AgentSpec("task", model="other"))
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


async def test_closing_closes_the_model_at_once() -> None:
    model = ScriptedModel(["one two three four", answer("never")])
    events = recorded_of(model, AgentSpec("task"))
    async for one in events:
        if isinstance(one.event, ThoughtDelta):
            break
    assert model.closed == 0
    await events.aclose()
    assert model.closed == 1
    assert len(model.asked) == 1


async def test_cancelling_closes_the_model_at_once() -> None:
    waiting = asyncio.Event()

    async def wait(_: object) -> None:
        waiting.set()
        await asyncio.sleep(30)

    model = ScriptedModel(["never"], before=wait)
    task = asyncio.create_task(events_of(model, AgentSpec("task")))
    await asyncio.wait_for(waiting.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.closed == 1
