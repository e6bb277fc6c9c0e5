"""Parts of a running fleet are killed; its callers must not notice, or only what cannot be helped."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.cluster.conftest import Processes

import argosy
from argosy_services.testing import RunningCluster

PROMPTS = [f"Log entry {index}. The wind came from the {'north' if index % 2 else 'south'} and" for index in range(16)]
TOKENS = 48
# So many that no stream is over before its engine is.
MANY_TOKENS = 400
# What the fleet promises.
BACK_WITHIN_S = 6.0


async def read(
    client: argosy.AsyncClient,
    prompt: str,
    began: asyncio.Event | None = None,
    *,
    adapter: str = "",
    tokens: int = TOKENS,
) -> list[int]:
    """The token ids of a greedy stream; `began` is set once a few have come."""
    ids: list[int] = []
    options = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "adapter": adapter}
    async with client.generation.stream(prompt, **options) as stream:  # type: ignore[arg-type]
        async for event in stream:
            if isinstance(event, argosy.Delta):
                ids += event.token_ids
                if began is not None and len(ids) >= 8:
                    began.set()
    return ids


async def test_streams_outlive_their_engine(fleet: RunningCluster, processes: Processes) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=240) as client:
        undisturbed = await asyncio.gather(*(read(client, prompt, tokens=MANY_TOKENS) for prompt in PROMPTS))
        began = [asyncio.Event() for _ in PROMPTS]
        reading = [
            asyncio.create_task(read(client, *each, tokens=MANY_TOKENS)) for each in zip(PROMPTS, began, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in began))
        assert not any(task.done() for task in reading)
        processes.kill(processes.named("ray::ServeReplica:generation:Engine")[0])
        assert await asyncio.gather(*reading) == undisturbed
    assert all(len(ids) == MANY_TOKENS for ids in undisturbed)


async def test_calls_wait_for_a_new_proxy(fleet: RunningCluster, processes: Processes) -> None:
    front = "haproxy" if fleet.settings.cluster.profile == "production" else "ray::ProxyActor"
    async with argosy.AsyncClient(fleet.address) as client:
        await client.tokenization.encode("before")
        for process in processes.named(front):
            processes.kill(process)
        killed = time.monotonic()
        # All of them start while nobody is there: their first answers are from the new proxy.
        calls = [client.tokenization.encode(f"call {index}") for index in range(20)]
        calls += [client.embeddings.embed([f"call {index}"]) for index in range(5)]
        assert len(await asyncio.gather(*calls, read(client, PROMPTS[0]))) == 26
    assert time.monotonic() - killed < BACK_WITHIN_S + 10


async def test_service_is_back_soon_after_the_proxy_died(fleet: RunningCluster, processes: Processes) -> None:
    front = "haproxy" if fleet.settings.cluster.profile == "production" else "ray::ProxyActor"
    for process in processes.named(front):
        processes.kill(process)
    killed = time.monotonic()
    once = argosy.RetryPolicy(max_attempts=1)
    while True:
        try:
            async with argosy.AsyncClient(fleet.address, timeout=2, retry=once) as client:
                await client.tokenization.encode("back")
            break
        except argosy.ArgosyError:
            assert time.monotonic() - killed < BACK_WITHIN_S
            await asyncio.sleep(0.05)
    print(f"back after {time.monotonic() - killed:.1f} s")


@pytest.mark.parametrize("victim", ["ray::ServeReplica:generation:Generation", "ray::ServeReplica:adapters:Adapters"])
async def test_a_replica_is_replaced(fleet: RunningCluster, processes: Processes, victim: str) -> None:
    processes.kill(processes.named(victim)[0])
    async with argosy.AsyncClient(fleet.address) as client:
        assert len(await read(client, PROMPTS[0])) == TOKENS
