"""Completions side by side share the tokens of a run, and end it only where these are really spent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from argosy_services.agents.budget import BudgetSpentError, Meter
from argosy_services.agents.types import AgentSpec, Budget, ChainPrompt, Outcome, RunFinished, Strategy, Usage

from .scripted import ScriptedModel, agents
from .test_durability import all_of

MAP = (ChainPrompt("lines", "list"), ChainPrompt("each", "about {{item}}", for_each="lines"))


def spent(tokens: int) -> Usage:
    return Usage(completion_tokens=tokens)


async def end_of(model: ScriptedModel, spec: AgentSpec, directory: Path) -> RunFinished:
    with agents(model, [], directory) as service:
        end = (await asyncio.wait_for(all_of(service.run(spec)), 20))[-1].event
    assert isinstance(end, RunFinished)
    return end


async def test_a_map_over_many_lines_has_tokens_enough(tmp_path: Path) -> None:
    lines = "\n".join(f"line{place}" for place in range(12))
    spec = AgentSpec("task", strategy=Strategy.CHAIN, chain=MAP)
    model = ScriptedModel([lines, *(["short"] * 12)], before=lambda _: asyncio.sleep(0.01))
    end = await end_of(model, spec, tmp_path)
    assert (end.outcome, end.usage.completion_tokens) == (Outcome.ANSWERED, 13)


async def test_many_votes_have_tokens_enough(tmp_path: Path) -> None:
    spec = AgentSpec("task", strategy=Strategy.CHAIN_OF_THOUGHT, votes=16)

    # By what is asked, because votes come to their answers in any order.
    class Voter(ScriptedModel):
        async def complete(self, completion):  # type: ignore[no-untyped-def]
            self.texts = [*self.texts, "because" if completion.form is None else '{"answer": "4"}']
            async for chunk in super().complete(completion):
                yield chunk

    model = Voter([], before=lambda _: asyncio.sleep(0.01))
    end = await end_of(model, spec, tmp_path)
    assert (end.outcome, len(model.asked)) == (Outcome.ANSWERED, 32)
    assert min(completion.max_tokens for completion in model.asked) == 320


async def test_a_run_still_ends_where_its_tokens_are_spent(tmp_path: Path) -> None:
    lines = "\n".join(f"line{place}" for place in range(8))
    spec = AgentSpec("task", strategy=Strategy.CHAIN, chain=MAP, budget=Budget(max_tokens=61))
    model = ScriptedModel([lines, *(["word " * 19 + "end"] * 8)], before=lambda _: asyncio.sleep(0.01))
    end = await end_of(model, spec, tmp_path)
    assert (end.outcome, end.usage.completion_tokens) == (Outcome.TOKEN_LIMIT, 61)
    assert len(model.asked) == 4


async def test_who_finds_all_reserved_waits() -> None:
    meter = Meter(Budget(max_tokens=100))
    grants: list[int] = []

    async def use(most: int, tokens: int) -> None:
        async with meter.reserved(most) as granted:
            grants.append(granted)
            await asyncio.sleep(0.01)
            meter.charge(spent(tokens))

    await asyncio.wait_for(asyncio.gather(*(use(80, 10) for _ in range(4))), 5)
    assert grants == [80, 80, 80, 70], "nobody is content with a rest while more may come back"
    assert meter.usage.completion_tokens == 40
    async with meter.reserved(80) as granted:
        assert granted == 60, "what is left where nobody holds anything"
        meter.check()
        meter.charge(spent(60))
    with pytest.raises(BudgetSpentError) as caught:
        async with meter.reserved(1):
            pass
    assert caught.value.outcome is Outcome.TOKEN_LIMIT
    with pytest.raises(BudgetSpentError):
        meter.check()


async def test_who_waits_ends_where_others_spent_everything() -> None:
    meter = Meter(Budget(max_tokens=100))

    async def use(tokens: int) -> None:
        async with meter.reserved(100):
            await asyncio.sleep(0.01)
            meter.charge(spent(tokens))

    first, second = await asyncio.gather(use(100), use(1), return_exceptions=True)
    assert first is None
    assert isinstance(second, BudgetSpentError)


async def test_a_waiter_that_is_cancelled_holds_nothing() -> None:
    meter = Meter(Budget(max_tokens=100))

    async def wait() -> None:
        async with meter.reserved(100):
            raise AssertionError("nothing was free")

    async with meter.reserved(100):
        waiters = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
    async with asyncio.timeout(1), meter.reserved(100) as granted:
        assert granted == 100
    async with asyncio.timeout(1), meter.reserved(50), meter.reserved(50) as granted:
        assert granted == 50


async def test_who_waits_has_no_more_time_than_the_run() -> None:
    meter = Meter(Budget(max_tokens=100, max_seconds=0.05))
    async with meter.reserved(100):
        with pytest.raises(BudgetSpentError) as caught:
            async with meter.reserved(1):
                pass
    assert caught.value.outcome is Outcome.TIME_LIMIT
