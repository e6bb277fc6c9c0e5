"""Connections between gateways and engines, on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from argosy_services.cluster.messages import MAX_BYTES, Cancel, MessageRefusedError, Outputs, Run, ToEngine, ToGateway
from argosy_services.cluster.wire import Connection, Contact, connect, listen
from argosy_services.engine.base import Request, StepOutput

HOST = "127.0.0.1"
REFUSED = "a connection was ended"


@contextlib.asynccontextmanager
async def counting() -> AsyncIterator[Contact]:
    """Answers with the tokens that it is given, or with the name of what is cancelled."""

    async def serve(gateway: Connection[ToGateway, ToEngine]) -> None:
        async for message in gateway.messages():
            if isinstance(message, Run):
                gateway.send(Outputs([StepOutput(message.request.id, tuple(message.request.prompt))]))
            else:
                gateway.send(Outputs([StepOutput(message.request_id)]))

    contact, server = await listen(HOST, serve)
    try:
        yield contact
    finally:
        server.close()


async def answer(connection: Connection[ToEngine, ToGateway]) -> Any:
    async with asyncio.timeout(5):
        return await anext(connection.messages(), None)


async def test_messages_go_both_ways_in_their_order() -> None:
    async with counting() as contact:
        connection = await connect(Contact.read(contact.published()))
        connection.send(Run(Request("a", prompt=[1, 2], max_tokens=1)))
        connection.send(Cancel("b"))
        assert await answer(connection) == Outputs([StepOutput("a", (1, 2))])
        assert await answer(connection) == Outputs([StepOutput("b")])
        connection.close()


async def test_messages_larger_than_any_buffer_arrive() -> None:
    async with counting() as contact:
        connection = await connect(contact)
        tokens = tuple(range(1_000_000))
        connection.send(Run(Request("a", prompt=tokens, max_tokens=1)))
        assert await answer(connection) == Outputs([StepOutput("a", tokens)])
        connection.close()


async def test_whoever_does_not_know_the_secret_is_not_served() -> None:
    served: list[Any] = []

    async def serve(connection: Connection[ToGateway, ToEngine]) -> None:
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


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        pytest.param(framed(b"\xc1" * 100), "not a message", id="noise"),
        pytest.param(framed(b""), "not a message", id="nothing"),
        pytest.param(framed(pickle.dumps(Request("a", [1], 1))), "not a message", id="a pickle"),
        pytest.param(framed(b"\x92\xa7Outputs\x90"), "not a message", id="a message of the other direction"),
        pytest.param((MAX_BYTES + 1).to_bytes(4), f"at most {MAX_BYTES}", id="too long by a byte"),
        pytest.param(b"\xff" * 4, f"at most {MAX_BYTES}", id="as long as can be said"),
    ],
)
async def test_what_is_not_a_message_ends_its_connection_and_no_other(sent: bytes, problem: str) -> None:
    async with counting() as contact:
        hostile, other = await connect(contact), await connect(contact)
        with capture_logs() as logged:
            hostile._writer.write(sent)
            assert await answer(hostile) is None
        (entry,) = logged
        assert (entry["log_level"], entry["event"]) == ("warning", REFUSED)
        assert problem in entry["cause"]
        other.send(Cancel("a"))
        assert await answer(other) == Outputs([StepOutput("a")])
        hostile.close()
        other.close()


async def test_a_message_as_long_as_allowed_is_waited_for() -> None:
    async with counting() as contact:
        connection = await connect(contact)
        connection._writer.write(MAX_BYTES.to_bytes(4) + b"\x92")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(connection.messages()), 0.05)
        connection.close()


async def test_gateways_refuse_what_engines_must_not_say() -> None:
    async def serve(gateway: Connection[ToGateway, ToEngine]) -> None:
        gateway._writer.write(framed(b"\x92\xa6Cancel\xa1a"))

    contact, server = await listen(HOST, serve)
    connection = await connect(contact)
    with pytest.raises(MessageRefusedError, match="not a message"):
        await answer(connection)
    connection.close()
    server.close()


async def test_the_other_end_sees_an_end() -> None:
    async with counting() as contact:
        connection = await connect(contact)
        connection.send(Cancel("a"))
        connection.close()
        connection.send(Cancel("after the end"))
        assert await answer(connection) is None
