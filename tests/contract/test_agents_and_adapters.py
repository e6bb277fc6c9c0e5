"""Agents always make well-formed calls, and adapters come and go beside running streams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import argosy
from argosy_services.testing import RunningFleet

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def test_an_agent_computes_and_tells_what_it_does(client: argosy.Client) -> None:
    run = client.agents.run("What is 17 * 23 + 4?", tools=["calculator"])
    events = list(run)
    assert isinstance(events[0], argosy.RunStarted)
    assert isinstance(events[-1], argosy.RunFinished)
    calls = [event for event in events if isinstance(event, argosy.ToolRequested)]
    returns = [event for event in events if isinstance(event, argosy.ToolReturned)]
    assert [call.call_id for call in calls] == [answer.call_id for answer in returns]
    assert any("395" in answer.observation for answer in returns)
    assert run.answer
    assert "395" in run.answer


@pytest.mark.parametrize("task", ["Tell me a joke about 7.", "??", 'List {every} "tool" you have: \\', "時刻は"])
def test_whatever_the_task_calls_are_well_formed(client: argosy.Client, task: str) -> None:
    budget = argosy.AgentBudget(max_steps=2, max_tokens=120, max_duration=60)
    run = client.agents.run(task, budget=budget, temperature=1.0, seed=5)
    tools = {tool.name: tool for tool in client.agents.list_tools()}
    for event in run:
        if isinstance(event, argosy.ToolRequested):
            assert event.tool in tools
            assert set(event.arguments) <= set(tools[event.tool].parameters["properties"])
    assert run.finished is not None
    assert run.finished.usage.completion_tokens <= 120


@pytest.mark.parametrize(
    ("budget", "outcome"),
    [
        (argosy.AgentBudget(max_tokens=3), "token_limit"),
        (argosy.AgentBudget(max_duration=0.05), "time_limit"),
    ],
)
def test_budgets_end_runs(client: argosy.Client, budget: argosy.AgentBudget, outcome: str) -> None:
    run = client.agents.run("What is 17 * 23 + 4?", budget=budget)
    run.result()
    assert run.finished is not None
    assert run.finished.outcome == outcome


async def test_adapters_come_and_go_beside_running_streams(fleet: RunningFleet, good_adapter: Path) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=180) as client:

        async def stream(name: str, tokens: int) -> tuple[int, ...]:
            options = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "adapter": name}
            answer = client.generation.stream("The harbour at night is", **options)
            return (await answer.result()).choices[0].token_ids

        alone = await stream("", 48)
        running = asyncio.gather(*(stream("", 48) for _ in range(4)))
        for _ in range(3):
            loaded = await client.adapters.load("guest", good_adapter)
            first, second = await asyncio.gather(stream("guest", 6), stream("guest", 6))
            assert first == second
            assert first != alone[:6]
            assert loaded.version
            assert (await client.adapters.unload("guest")).state == "unloaded"
        assert await running == [alone] * 4


async def test_unloading_waits_for_running_streams_and_cancels_at_the_deadline(
    fleet: RunningFleet, good_adapter: Path
) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=180) as client:
        await client.adapters.load("leaver", good_adapter)
        options = {"temperature": 0.0, "ignore_eos": True, "adapter": "leaver"}
        short = client.generation.stream("Hello", max_tokens=24, **options)
        endless = client.generation.stream("Hello", max_tokens=4000, **options)
        assert isinstance(await anext(short), argosy.Started)
        assert isinstance(await anext(endless), argosy.Started)
        leaving = asyncio.create_task(client.adapters.unload("leaver", drain_timeout=6))
        assert len((await short.result()).choices[0].token_ids) == 24
        with pytest.raises(argosy.AdapterNotReadyError):
            await endless.result()
        assert (await leaving).state == "unloaded"
