"""Tools of MCP servers, by stdio and by streamable HTTP, with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from argosy_services.agents.tools.base import Effect, Tool, ToolError, call
from argosy_services.agents.tools.mcp import McpServer
from argosy_services.settings import McpServerSettings

SERVER = """
import sys
from mcp.server.fastmcp import FastMCP
from mcp.types import ToolAnnotations

server = FastMCP("notes", port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
notes = []

@server.tool(annotations=ToolAnnotations(readOnlyHint=True))
def add(a: int, b: int) -> str:
    "Adds two numbers."
    return str(a + b)

@server.tool()
def note(text: str) -> str:
    "Writes a note."
    notes.append(text)
    return f"{len(notes)} notes"

@server.tool()
def broken() -> str:
    "Fails."
    raise ValueError("no luck")

server.run(sys.argv[1])
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(textwrap.dedent(SERVER))
    return path


@contextlib.asynccontextmanager
async def settings_for(transport: str, script: Path) -> AsyncIterator[McpServerSettings]:
    if transport == "stdio":
        yield McpServerSettings(command=(sys.executable, str(script), "stdio"))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), "streamable-http", str(port), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            while not _listens(port):
                await asyncio.sleep(0.05)
        yield McpServerSettings(url=f"http://127.0.0.1:{port}/mcp", approval="always")
    finally:
        process.kill()
        await process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_server_is_used(transport: str, script: Path) -> None:
    async with settings_for(transport, script) as settings:
        server = McpServer("notes", settings)
        tools: dict[str, Tool] = {tool.name: tool for tool in await server.start()}
        try:
            assert sorted(tools) == ["notes.add", "notes.broken", "notes.note"]
            add, note = tools["notes.add"], tools["notes.note"]
            assert (add.effect, note.effect) == (Effect.READ, Effect.WRITE)
            assert (add.needs_approval, note.needs_approval) == (transport == "http", True)
            assert not add.trusted
            found = await call(add, {"a": 2, "b": 3}, at_most_s=20)
            assert (found.status, found.text) == ("ok", "5")
            assert (await call(add, {"a": "x", "b": 3}, at_most_s=20)).status == "invalid"
            said = await asyncio.gather(*(call(note, {"text": "a"}, at_most_s=20) for _ in range(3)))
            assert sorted(one.text for one in said) == ["1 notes", "2 notes", "3 notes"]
            failed = await call(tools["notes.broken"], {}, at_most_s=20)
            assert (failed.status, "no luck" in failed.text) == ("error", True)
        finally:
            await server.close()


async def test_a_server_that_is_not_there() -> None:
    server = McpServer("none", McpServerSettings(command=(sys.executable, "-c", "raise SystemExit(1)")))
    with pytest.raises(ConnectionError, match="'none' cannot be used"):
        await asyncio.wait_for(server.start(), 40)


async def test_who_connects_again_does_not_end_the_session_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt fails; a call that comes in that moment makes the next one."""
    server, failed, sessions = McpServer("notes", McpServerSettings(url="http://x")), asyncio.Event(), []

    async def serve(ready: asyncio.Future[None]) -> None:
        sessions.append("open")
        place = len(sessions) - 1
        try:
            await asyncio.sleep(0)
            if place == 0:
                failed.set()
                ready.set_exception(ConnectionResetError("lost"))
                return
            ready.set_result(None)
            while True:
                tool, _, answer = await server._calls.get()
                answer.set_result(tool)
        finally:
            sessions[place] = "closed"

    monkeypatch.setattr(server, "_serve", serve)

    async def second() -> str:
        await failed.wait()
        return await server.call("second", {})

    waiting = asyncio.create_task(second())
    await asyncio.sleep(0)
    with pytest.raises(ToolError, match="cannot be used"):
        await server.call("first", {})
    assert await asyncio.wait_for(waiting, 5) == "second"
    assert await asyncio.gather(*(server.call(str(place), {}) for place in range(5))) == list("01234")
    assert sessions == ["closed", "open"]
    await server.close()
    assert sessions == ["closed", "closed"]
    with pytest.raises(ToolError, match="closed"):
        await server.call("late", {})


async def test_a_call_that_gives_up_leaves_no_half_made_session(monkeypatch: pytest.MonkeyPatch) -> None:
    server, sessions = McpServer("notes", McpServerSettings(url="http://x")), []

    async def serve(ready: asyncio.Future[None]) -> None:
        sessions.append("open")
        try:
            await asyncio.sleep(60)
        finally:
            sessions[-1] = "closed"

    monkeypatch.setattr(server, "_serve", serve)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await server.call("first", {})
    assert sessions == ["closed"]


async def test_closing_does_not_wait_for_a_server_that_does_not_answer() -> None:
    silent = (sys.executable, "-c", "import time; time.sleep(60)")
    server = McpServer("silent", McpServerSettings(command=silent))
    waiting = asyncio.create_task(server.call("first", {}))
    await asyncio.sleep(0.2)
    await asyncio.wait_for(server.close(), 10)
    with pytest.raises(ToolError, match="the session was ended"):
        await asyncio.wait_for(waiting, 5)
