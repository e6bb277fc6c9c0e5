"""A real server on free ports, for tests: Argosy's own and those of programs that call it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from argosy_services.embedded import Build, EmbeddedServer, build_all
from argosy_services.settings import Settings


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server listens; each address is `host:port`."""

    address: str
    metrics_address: str


@asynccontextmanager
async def run_test_server(
    settings: Settings | None = None, *, build: Build = build_all
) -> AsyncIterator[RunningServer]:
    """Runs a server on the present event loop; on entry it is ready.

    The ports of `settings` are replaced by free ones. `build` makes the services; by default they are all there is,
    with the models that the settings name. Raises StartupError.
    """
    ports = {"port": 0, "metrics_port": 0}
    server = EmbeddedServer((settings or Settings()).model_copy(update=ports), build)
    try:
        await server.open()
        await server.load()
        yield RunningServer(server.address, server.metrics_address)
    finally:
        await server.close(drain_seconds=5.0)


@contextmanager
def run_test_server_in_thread(settings: Settings | None = None, *, build: Build = build_all) -> Iterator[RunningServer]:
    """The same for callers without an event loop: the server has its own, in a thread."""
    ready: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_run(settings, build, ready)), name="argosy-test-server")
    thread.start()
    try:
        running, loop, ended = ready.result()
        try:
            yield running
        finally:
            loop.call_soon_threadsafe(ended.set)
    finally:
        thread.join()


async def _run(
    settings: Settings | None,
    build: Build,
    ready: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]],
) -> None:
    ended = asyncio.Event()
    try:
        async with run_test_server(settings, build=build) as running:
            ready.set_result((running, asyncio.get_running_loop(), ended))
            await ended.wait()
    except Exception as error:
        if ready.done():
            raise
        ready.set_exception(error)
