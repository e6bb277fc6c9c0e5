"""Many requests at once with asyncio: the server runs them in one batch.

Needs a server: `argosy serve`.
"""

import asyncio
import time

import argosy

PORTS = ("Lisbon", "Rotterdam", "Valparaíso", "Nagasaki")


async def describe(client: argosy.AsyncClient, port: str) -> str:
    """One streamed answer; the pieces of all of them arrive in turn."""
    async with client.generation.stream(f"{port} is a port that", max_tokens=24, temperature=0.0) as stream:
        return "".join([text async for text in stream.text()])


async def main() -> None:
    """Asks about every port at the same time."""
    async with argosy.AsyncClient() as client:
        started = time.monotonic()
        texts = await asyncio.gather(*(describe(client, port) for port in PORTS))
        for port, text in zip(PORTS, texts, strict=True):
            print(f"{port} is a port that{' '.join(text.splitlines())}")
        print(f"{len(PORTS)} answers in {time.monotonic() - started:.1f} s")


asyncio.run(main())
