"""How long others wait for their first token while agents work.

    python bench/agents_beside.py [runs, 50]

One caller asks again and again, with a chat of some 250 tokens that no cache knows: first alone, then beside runs of
five steps each that all begin at once. The server is a process of its own.
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


async def run(client: argosy.AsyncClient, number: int) -> tuple[int, str]:
    """Steps and outcome of one run."""
    budget = argosy.AgentBudget(max_steps=STEPS, max_tokens=4_000, max_seconds=600)
    async for event in client.agents.run(f"ship number {number}", strategy="chain", chain=_CHAIN, budget=budget):
        if isinstance(event, argosy.RunFinished):
            return event.steps, str(event.outcome)
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
            working = asyncio.gather(*(run(client, number) for number in range(runs)))
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
