"""Callers with keys of their own on one small server: who goes first, who is refused, and who sees nothing of whom.

The server is a process of its own: the gauges of two engines in one would be each other's.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import argosy
from argosy_services.models.types import LocalModel

ORDINARY, OTHER, IMPORTANT = "an-ordinary-key", "some-other-key", "an-important-key"
# One runs, six wait.
PLACES = 7
PROGRAM = "import sys; from argosy_services.embedded import serve; from argosy_services.settings import Settings"
ONCE = argosy.RetryPolicy(max_attempts=1)
PROMPT = "The harbour master wrote down every ship that came in, and for each of them " * 8


@pytest.fixture(scope="module")
def address(smollm2: LocalModel, minilm: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {
        "ARGOSY_PORT": "0",
        "ARGOSY_METRICS_PORT": "0",
        "ARGOSY_API_KEYS": f"{ORDINARY},{OTHER},{IMPORTANT}",
        "ARGOSY_PRIORITY_KEYS": IMPORTANT,
        "ARGOSY_GENERATION__MODEL": smollm2.name,
        "ARGOSY_EMBEDDINGS__MODEL": minilm.name,
        "ARGOSY_GENERATION__DTYPE": "float32",
        "ARGOSY_GENERATION__THREADS": "1",
        "ARGOSY_GENERATION__KV_CACHE_TOKENS": "4096",
        "ARGOSY_GENERATION__MAX_BATCH": "1",
        "ARGOSY_GENERATION__MAX_WAITING": str(PLACES - 1),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ARGOSY_")}
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", f"{PROGRAM}; sys.exit(serve(Settings()))"], env={**kept, **settings}, stderr=stderr
        ) as server,
    ):
        try:
            yield _ready(server, log)
        finally:
            server.terminate()


def _ready(server: subprocess.Popen[bytes], log: Path) -> str:
    while server.poll() is None:
        for line in log.read_text().splitlines(keepends=True):
            if line.endswith("\n") and (entry := json.loads(line))["event"] == "ready":
                return entry["address"]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


@dataclass
class Callers:
    """One client for each key, and the order in which their answers were begun."""

    clients: dict[str, argosy.AsyncClient]
    begun: list[str]

    async def ask(self, name: str, key: str, *, tokens: int = 8, **options: object) -> asyncio.Task[None]:
        """Has a request wait in the server, or run; `name` is written down when its first token comes."""
        stream = self.clients[key].generation.stream(
            f"{name} says", max_tokens=tokens, ignore_eos=True, temperature=0.0, **options
        )
        events = aiter(stream)
        assert isinstance(await anext(events), argosy.Started)

        async def read() -> None:
            async with stream:
                async for event in events:
                    if isinstance(event, argosy.Delta) and name not in self.begun:
                        self.begun.append(name)

        return asyncio.create_task(read())

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """The one place in the batch is taken, by nobody's customer, and is free when the block ends."""
        blocker = await self.ask("blocker", IMPORTANT, tokens=2_000, priority=2)
        while "blocker" not in self.begun:
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self.begun.remove("blocker")
            blocker.cancel()
            await asyncio.wait([blocker])


@pytest.fixture
async def callers(address: str) -> AsyncIterator[Callers]:
    clients = {
        key: argosy.AsyncClient(address, api_key=key, timeout=120, retry=ONCE) for key in (ORDINARY, OTHER, IMPORTANT)
    }
    yield Callers(clients, [])
    for client in clients.values():
        await client.close()


async def test_higher_priorities_go_first(callers: Callers) -> None:
    async with callers.busy():
        waiting = [
            await callers.ask("low", ORDINARY, priority=-2),
            await callers.ask("normal", ORDINARY),
            await callers.ask("later", ORDINARY),
            await callers.ask("high", IMPORTANT, priority=1),
        ]
    await asyncio.gather(*waiting)
    assert callers.begun == ["high", "normal", "later", "low"]


async def test_a_higher_priority_takes_the_place_of_a_lower_one_which_loses_nothing(callers: Callers) -> None:
    whole = await callers.clients[ORDINARY].generation.generate(
        "slow says", max_tokens=100, temperature=0.0, ignore_eos=True
    )
    slow = callers.clients[ORDINARY].generation.stream("slow says", max_tokens=100, temperature=0.0, ignore_eos=True)
    async with slow:
        async for event in slow:
            if isinstance(event, argosy.Delta):
                break
        # There is one place in the batch.
        await callers.clients[IMPORTANT].generation.generate("urgent says", max_tokens=4, priority=2)
        after = [event async for event in slow if isinstance(event, argosy.Delta)]
        assert len(after) > 10
        assert slow.final.text == whole.text


async def test_one_caller_with_many_requests_does_not_hold_up_another(callers: Callers) -> None:
    async with callers.busy():
        flood = [await callers.ask(f"flood {at}", ORDINARY) for at in range(PLACES - 1)]
        other = await callers.ask("other", OTHER)
    await asyncio.gather(*flood, other)
    assert callers.begun.index("other") <= 1


async def test_a_full_server_refuses_and_says_when_to_come_back(callers: Callers) -> None:
    async with callers.busy():
        flood = [await callers.ask(f"flood {at}", ORDINARY) for at in range(PLACES - 1)]
        with pytest.raises(argosy.QueueFullError) as refused:
            await callers.ask("one too many", ORDINARY)
        assert refused.value.retry_after is not None
        assert 0.1 <= refused.value.retry_after <= 60
        assert refused.value.metadata == {"limit": str(PLACES), "value": str(PLACES)}
        # It is not full for those who have less than their share, nor for what goes before.
        flood.append(await callers.ask("other", OTHER))
        flood.append(await callers.ask("high", IMPORTANT, priority=1))
    await asyncio.gather(*flood)
    assert len(callers.begun) == PLACES + 1


async def test_what_nobody_waits_for_any_more_gives_its_place_back(callers: Callers) -> None:
    async with callers.busy():
        gone = [await callers.ask(f"gone {at}", ORDINARY) for at in range(PLACES - 2)]
        late = await callers.ask("late", ORDINARY, timeout=0.5)
        with pytest.raises(argosy.QueueFullError):
            await callers.ask("one too many", ORDINARY)
        with pytest.raises(argosy.DeadlineExceededError):
            await late
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        stayed = [await _insist(callers, f"stayed {at}") for at in range(PLACES - 1)]
    await asyncio.gather(*stayed)
    assert len(callers.begun) == PLACES - 1


async def _insist(callers: Callers, name: str) -> asyncio.Task[None]:
    """Cancelled calls are free as soon as the engine's next step begins."""
    give_up = time.monotonic() + 10
    while True:
        try:
            return await callers.ask(name, ORDINARY)
        except argosy.QueueFullError:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)


async def test_nobody_can_find_out_what_another_has_asked(callers: Callers) -> None:
    async def cached(key: str, **options: str) -> int:
        answer = await callers.clients[key].generation.generate(PROMPT, max_tokens=1, **options)
        return answer.usage.cached_tokens

    assert await cached(ORDINARY) == 0
    found = await cached(ORDINARY)
    assert found > 100
    assert await cached(OTHER) == 0
    assert await cached(ORDINARY, cache_salt="customer 1") == 0
    assert await cached(OTHER, cache_salt="customer 1") == 0
    assert await cached(ORDINARY, cache_salt="customer 1") == found


async def test_only_some_keys_may_go_before_others(callers: Callers) -> None:
    with pytest.raises(argosy.PermissionDeniedError, match="ARGOSY_PRIORITY_KEYS") as refused:
        await callers.clients[ORDINARY].generation.generate("x", priority=1)
    assert refused.value.metadata == {"field": "spec.priority", "limit": "0", "value": "1"}


async def test_a_request_is_explained_to_its_own_key_alone(callers: Callers) -> None:
    """Fails when one key learns of another's requests, or who they are."""
    mine, theirs = callers.clients[ORDINARY].generation, callers.clients[OTHER].generation
    async with callers.busy():
        waiting = asyncio.create_task(mine.generate("Mine says", max_tokens=4, request_id="mine"))
        await asyncio.sleep(0.3)
        assert (await mine.explain("mine")).state is argosy.RequestState.RUNNING
    await waiting
    found = await mine.explain("mine")
    (queue,) = [wait for wait in found.waits if wait.cause is argosy.WaitCause.QUEUE]
    assert queue.ahead == argosy.Ahead(own=0, others=1, higher_priority=1, waiting_tokens=0)
    assert queue.short_of == "places"
    assert queue.seconds >= 0.2
    with pytest.raises(argosy.RequestNotFoundError):
        await theirs.explain("mine")
