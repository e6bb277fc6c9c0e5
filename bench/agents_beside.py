"""How long others wait for their first token while agents work.

    python bench/agents_beside.py [runs, 50]

One caller asks again and again, with a chat of some 250 tokens that no cache knows: first alone, then beside runs of
five steps each that all begin at once. The server is a process of its own, and the runs are detached: reading fifty of
them here would hold up the caller whose time is taken.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time

from startup import server

import argosy

STEPS, ALONE = 5, 40
_WORDS = ("harbour", "anchor", "lantern", "captain", "cargo", "storm", "letter", "island", "chart", "sail", "rope")
_CHAIN = (
    argosy.ChainPrompt("one", "Describe {{task}} in five sentences."),
    argosy.ChainPrompt("two", "What follows from this? {{one}}"),
    argosy.ChainPrompt("three", "Name what is wrong with this: {{two}}"),
    argosy.ChainPrompt("four", "Write it again, better: {{one}} {{three}}"),
    argosy.ChainPrompt("five", "Sum it up in two sentences: {{four}}"),
)


async def first_token(client: argosy.AsyncClient, draw: random.Random) -> float:
    """Seconds until the first text of an answer."""
    prompt = [{"role": "user", "content": " ".join(draw.choices(_WORDS, k=190))}]
    started = time.perf_counter()
    async with client.generation.stream(prompt, max_tokens=8) as events:  # type: ignore[arg-type]
        async for event in events:
            if isinstance(event, argosy.Delta):
                return time.perf_counter() - started
    raise RuntimeError("the answer has no text")


async def begin(client: argosy.AsyncClient, number: int) -> str:
    """Begins a run; gives its id."""
    budget = argosy.AgentBudget(max_steps=STEPS, max_tokens=10_000, max_duration=600)
    task = f"ship number {number}"
    async with client.agents.run(task, strategy="chain", chain=_CHAIN, budget=budget, detached=True) as events:
        async for event in events:
            if isinstance(event, argosy.RunStarted):
                return event.run_id
    raise RuntimeError("the run did not start")


async def end(client: argosy.AsyncClient, run_id: str) -> tuple[int, str]:
    """Steps and outcome of a run, once it has them."""
    while (seen := await client.agents.get(run_id)).state is not argosy.RunState.FINISHED:  # noqa: ASYNC110 (elsewhere)
        await asyncio.sleep(2.0)
    async for event in client.agents.replay(run_id):
        if isinstance(event, argosy.RunFinished):
            return event.steps, str(seen.outcome)
    raise RuntimeError("the run did not finish")


async def main(runs: int) -> None:
    draw = random.Random(1)
    with server(ARGOSY_AGENTS__MAX_RUNNING=str(runs)) as address:
        async with argosy.AsyncClient(address, timeout=600) as client:
            await client.wait_until_ready(timeout=60)
            await first_token(client, draw)
            alone = []
            for _ in range(ALONE):
                alone.append(await first_token(client, draw))
                await asyncio.sleep(0.1)
            started = time.perf_counter()
            begun = await asyncio.gather(*(begin(client, number) for number in range(runs)))
            working = asyncio.gather(*(end(client, run_id) for run_id in begun))
            await asyncio.sleep(1)
            beside = []
            while not working.done():
                beside.append(await first_token(client, draw))
                await asyncio.sleep(0.1)
            ended = await working
    print(f"{runs} runs in {time.perf_counter() - started:.1f} s: {sorted(set(ended))}")
    for name, seconds in (("alone", alone), ("beside them", beside)):
        middle, high = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
        print(f"first token {name}: median {middle * 1000:.0f} ms, 95 % {high * 1000:.0f} ms, {len(seconds)} answers")
    print(f"ratio of medians {statistics.median(beside) / statistics.median(alone):.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
