"""Work that can wait gives way to work that cannot, and loses nothing by it.

Needs a server: `argosy serve`. With API keys, a priority above 0 needs one of ARGOSY_PRIORITY_KEYS; below 0 is
everybody's. `cache_salt` keeps the prompts of one of your users out of the reach of the others.
"""

import asyncio
import time

import argosy

REPORTS = [f"Report {number}. The cargo of the ship was" for number in range(24)]


async def summarize(client: argosy.AsyncClient, report: str) -> str:
    """Nobody waits for it today."""
    answer = await client.generation.generate(report, max_tokens=16, temperature=0.0, priority=-2)
    return answer.text


async def main() -> None:
    """Asks a question while a backlog is worked off."""
    async with argosy.AsyncClient() as client:
        backlog = [asyncio.create_task(summarize(client, report)) for report in REPORTS]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        answer = await client.generation.generate(
            "The nearest harbour is", max_tokens=8, temperature=0.0, priority=0, cache_salt="user 17"
        )
        waited = time.monotonic() - started
        left = sum(not task.done() for task in backlog)
        print(f"The nearest harbour is{answer.text!r}, after {waited:.1f} s, with {left} reports still to do")
        print(f"{len(await asyncio.gather(*backlog))} reports done")


asyncio.run(main())
