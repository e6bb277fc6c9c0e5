"""A scripted server for each test, and clients for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from tests.unit.sdk import answers
from tests.unit.sdk.scripted import ScriptedServer

import argosy

QUICK = argosy.RetryPolicy(max_attempts=3, initial_backoff=0.01, max_backoff=0.02)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARGOSY_ADDRESS", raising=False)
    monkeypatch.delenv("ARGOSY_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.answers.update(answers.everything())
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[argosy.Client]:
    with argosy.Client(server.address, retry=QUICK) as made:
        yield made


@pytest_asyncio.fixture
async def aclient(server: ScriptedServer) -> AsyncIterator[argosy.AsyncClient]:
    async with argosy.AsyncClient(server.address, retry=QUICK) as made:
        yield made


class Face:
    """The sync and the async client behind one door, so that one test covers both."""

    def __init__(self, client: argosy.Client | argosy.AsyncClient) -> None:
        self.client: Any = client

    async def call(self, use: Callable[[Any], Any]) -> Any:
        """The result of a method."""
        if isinstance(self.client, argosy.Client):
            return await asyncio.to_thread(use, self.client)
        return await use(self.client)

    async def close(self) -> None:
        await self.call(lambda client: client.close())

    async def drain(self, use: Callable[[Any], Any], into: list[Any] | None = None) -> list[Any]:
        """The items of an iterator; with `into` also those before a failure."""
        items = [] if into is None else into
        if isinstance(self.client, argosy.Client):
            await asyncio.to_thread(lambda: _append_each(use(self.client), items))
        else:
            async for item in use(self.client):
                items.append(item)
        return items


def _append_each(iterator: Iterable[Any], into: list[Any]) -> None:
    for item in iterator:
        into.append(item)


@pytest_asyncio.fixture(params=["sync", "async"])
async def face(request: pytest.FixtureRequest, server: ScriptedServer) -> AsyncIterator[Face]:
    if request.param == "sync":
        with argosy.Client(server.address, retry=QUICK) as client:
            yield Face(client)
    else:
        async with argosy.AsyncClient(server.address, retry=QUICK) as client:
            yield Face(client)
