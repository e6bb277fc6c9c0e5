"""Connections between gateways and engines: messages over TCP, behind a secret that both ends must know.

A connection is quicker than calls through Ray Serve (docs/adr/0010), and it ends at once when the process at its other
end dies. Each end proves that it knows the secret without telling it (HMAC over the other's challenge), before any
message is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from argosy_services.cluster.messages import (
    MessageRefusedError,
    ToEngine,
    ToGateway,
    check_length,
    encode,
    read_to_engine,
    read_to_gateway,
)

log = structlog.get_logger("argosy.cluster")

Said = TypeVar("Said", bound=ToEngine | ToGateway)
Heard = TypeVar("Heard", bound=ToEngine | ToGateway)

_LENGTH_BYTES = 4
_CHALLENGE_BYTES = 32
_PROOF_BYTES = hashlib.sha256().digest_size
_GREETING_S = 5.0
# A machine that is lost sends no end of its connections: they end after three probes without an answer.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3, socket.TCP_USER_TIMEOUT: 25_000}


@dataclass(frozen=True, slots=True)
class Contact:
    """Where a process takes connections, and the secret that it asks for."""

    host: str
    port: int
    secret: bytes

    @classmethod
    def read(cls, published: Mapping[str, Any]) -> Contact:
        """From what `published` gave."""
        return cls(published["host"], published["port"], bytes.fromhex(published["secret"]))

    def published(self) -> dict[str, Any]:
        """As JSON can carry it. To be told to processes of the fleet only."""
        return {"host": self.host, "port": self.port, "secret": self.secret.hex()}


class Connection(Generic[Said, Heard]):
    """One end of a connection that both ends have agreed to."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, read: Callable[[bytes], Heard]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._read = read

    def send(self, message: Said) -> None:
        """Sends a message, in time or never: if the connection ends first, nobody is told. Raises MessageRefusedError
        for what is too long or cannot be written.
        """
        if not self._writer.is_closing():
            data = encode(message)
            self._writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)

    async def ready(self) -> None:
        """Waits while the other end is slow to read. Raises OSError once the connection has ended."""
        await self._writer.drain()

    async def messages(self) -> AsyncGenerator[Heard]:
        """What the other end sends, until the connection ends. Raises MessageRefusedError for what it must not send."""
        while True:
            try:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
                check_length(length)
                data = await self._reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                return
            yield self._read(data)

    def close(self) -> None:
        """Ends the connection once everything is sent."""
        self._writer.close()


async def connect(contact: Contact) -> Connection[ToEngine, ToGateway]:
    """A gateway's connection to an engine that listens. Raises OSError, also where it is not the right one."""
    async with asyncio.timeout(_GREETING_S):
        reader, writer = await asyncio.open_connection(contact.host, contact.port)
        try:
            await _greet(reader, writer, contact.secret, b"caller", b"listener")
        except BaseException:
            writer.close()
            raise
    return Connection(reader, writer, read_to_gateway)


async def listen(
    host: str, serve: Callable[[Connection[ToGateway, ToEngine]], Awaitable[None]]
) -> tuple[Contact, asyncio.Server]:
    """Takes gateways on a free port of `host`. Each connection is closed when `serve`, which is given it, returns."""
    secret = secrets.token_bytes(32)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_GREETING_S):
                await _greet(reader, writer, secret, b"listener", b"caller")
            await serve(Connection(reader, writer, read_to_engine))
        except (OSError, MessageRefusedError) as error:
            log.warning("a connection was ended", cause=str(error))
        finally:
            writer.close()

    server = await asyncio.start_server(accept, host, 0)
    return Contact(host, server.sockets[0].getsockname()[1], secret), server


async def _greet(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes, here: bytes, there: bytes
) -> None:
    """Proves to the other end that this one knows the secret, and has it prove the same. Raises OSError."""
    taken: socket.socket = writer.get_extra_info("socket")
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        taken.setsockopt(socket.IPPROTO_TCP, option, value)
    challenge = secrets.token_bytes(_CHALLENGE_BYTES)
    writer.write(challenge)
    try:
        theirs = await reader.readexactly(_CHALLENGE_BYTES)
        # The role is part of it, so that no end can be made to answer its own challenge.
        writer.write(hmac.digest(secret, here + theirs, "sha256"))
        proof = await reader.readexactly(_PROOF_BYTES)
    except asyncio.IncompleteReadError:
        raise ConnectionError("the other end left before it had proved who it is") from None
    if not hmac.compare_digest(proof, hmac.digest(secret, there + challenge, "sha256")):
        raise ConnectionError("the other end does not know the secret")
