"""The program that asks a server with TLS for its health, as a kubelet runs it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from argosy_services.embedded import EmbeddedServer
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.dispatch import MethodTable
from argosy_services.rpc.gate import Gate
from argosy_services.settings import Settings

from .conftest import CHART, ROOT

TLS = ROOT / "tests/unit/runtime/tls"


class NoServices:
    """A fleet that is ready at once."""

    healthy = True

    def register(self, server: MethodTable, gate: Gate, auth: Authenticator) -> None:
        pass

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def _asks(address: str) -> int:
    port = address.rpartition(":")[2]
    program: Path = CHART / "files/health.py"
    process = await asyncio.create_subprocess_exec(sys.executable, program, port, stderr=asyncio.subprocess.DEVNULL)
    return await asyncio.wait_for(process.wait(), 30)


async def test_it_tells_ready_from_not_yet_and_no_longer() -> None:
    settings = Settings(
        port=0,
        metrics_port=0,
        tls_certificate=TLS / "certificate.pem",
        tls_key=TLS / "key.pem",
        api_keys=("a-key-of-16-byte",),
    )
    server = EmbeddedServer(settings, lambda _: NoServices())
    await server.open()
    try:
        assert await _asks(server.address) == 1
        await server.load()
        assert await _asks(server.address) == 0
    finally:
        await server.close(0)
    assert await _asks(server.address) == 1


async def test_without_tls_there_is_no_answer() -> None:
    server = EmbeddedServer(Settings(port=0, metrics_port=0), lambda _: NoServices())
    await server.open()
    try:
        await server.load()
        assert await _asks(server.address) == 1
    finally:
        await server.close(0)
