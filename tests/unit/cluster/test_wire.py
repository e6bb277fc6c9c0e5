"""Connections between processes of one fleet, on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from argosy_services.cluster.wire import Connection, Contact, connect, listen
from argosy_services.engine.base import (
    Finish,
    Grammar,
    GrammarKind,
    Request,
    Sampling,
    StepOutput,
    Timings,
    TokenLogprobs,
)
from argosy_services.errors import ArgosyError, Reason

HOST = "127.0.0.1"
EVERYTHING = [
    Request(
        "a",
        prompt=[1, 2, 3],
        max_tokens=5,
        sampling=Sampling(temperature=0.5, logit_bias={7: -1.0}, logprobs=2),
        stop_token_ids=frozenset({0}),
        adapter="x@1",
        grammar=Grammar(GrammarKind.REGEX, "a+"),
        generated=(4,),
    ),
    "a",
    [
        StepOutput("a", (5,), (TokenLogprobs(5, -0.5, ((5, -0.5), (6, -1.5))),), cached_tokens=2),
        StepOutput("a", (6,), finish=Finish.LENGTH, timings=Timings(1.0, 2.0, 3.0)),
    ],
]


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[Contact]:
    """Sends everything back."""

    async def serve(connection: Connection) -> None:
        async for message in connection.messages():
            connection.send(message)

    contact, server = await listen(HOST, serve)
    try:
        yield contact
    finally:
        server.close()


async def answer(connection: Connection) -> Any:
    async with asyncio.timeout(5):
        return await anext(connection.messages(), None)


async def test_everything_that_engines_and_gateways_say_arrives() -> None:
    async with echoing() as contact:
        connection = await connect(Contact.read(contact.published()))
        for message in EVERYTHING:
            connection.send(message)
        assert [await answer(connection) for _ in EVERYTHING] == EVERYTHING
        connection.close()


async def test_an_error_arrives_with_its_facts() -> None:
    async with echoing() as contact:
        connection = await connect(contact)
        connection.send(ArgosyError(Reason.QUEUE_FULL, "full", retry_after_s=1.5, limit=3))
        error = await answer(connection)
        assert (error.reason, error.message, error.retry_after_s) == (Reason.QUEUE_FULL, "full", 1.5)
        assert error.metadata == {"limit": "3"}
        connection.close()


async def test_messages_larger_than_any_buffer_arrive() -> None:
    async with echoing() as contact:
        connection = await connect(contact)
        request = Request("a", prompt=list(range(1_000_000)), max_tokens=1)
        connection.send(request)
        assert await answer(connection) == request
        connection.close()


async def test_whoever_does_not_know_the_secret_is_not_served() -> None:
    served: list[Connection] = []

    async def serve(connection: Connection) -> None:
        served.append(connection)

    contact, server = await listen(HOST, serve)
    with pytest.raises(ConnectionError, match="does not know the secret"):
        await connect(replace(contact, secret=bytes(32)))
    server.close()
    assert not served


@pytest.mark.parametrize(
    ("challenge", "problem"),
    [
        pytest.param(lambda _: bytes(32), "does not know the secret", id="guesses"),
        pytest.param(lambda theirs: theirs, "does not know the secret", id="repeats what it hears"),
        pytest.param(lambda _: b"", "left before", id="leaves"),
    ],
)
async def test_a_listener_that_does_not_know_the_secret_is_told_nothing(
    challenge: Callable[[bytes], bytes], problem: str
) -> None:
    told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(challenge(await reader.readexactly(32)))
        if problem == "left before":
            writer.write_eof()
        else:
            writer.write(await reader.readexactly(32))
        told.set_result(await reader.read())
        writer.close()

    server = await asyncio.start_server(pretend, HOST, 0)
    with pytest.raises(ConnectionError, match=problem):
        await connect(Contact(HOST, server.sockets[0].getsockname()[1], b"secret"))
    server.close()
    assert await asyncio.wait_for(told, 5) == b""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("os\nmkdir", id="another module"),
        pytest.param("builtins\nlen", id="what is built in"),
        pytest.param("argosy_services.engine.base\nPath", id="what the vocabulary imports"),
        pytest.param("argosy_services.errors\nenum", id="a module that it imports"),
    ],
)
async def test_nothing_but_the_vocabulary_is_unpickled(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    text = str(made).encode()
    calling = b"\x80\x02c" + name.encode() + b"\nX" + len(text).to_bytes(4, "little") + text + b"\x85R."
    async with echoing() as contact:
        connection = await connect(contact)
        connection._writer.write(len(calling).to_bytes(4) + calling)
        assert await answer(connection) is None
        connection.close()
    assert not made.exists()


async def test_the_other_end_sees_an_end() -> None:
    async with echoing() as contact:
        connection = await connect(contact)
        connection.send("a")
        connection.close()
        connection.send("after the end")
        assert await answer(connection) is None
