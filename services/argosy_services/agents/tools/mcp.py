"""Tools of servers that speak the Model Context Protocol, through its package.

A session belongs to one task, because the package ties what it opens to the task that did so. A server that cannot be
reached when the fleet starts fails the start; one that is lost later fails its calls, and the next call connects again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import structlog
from mcp import ClientSession, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import McpError

from argosy_services.agents.tools.base import Effect, ToolError
from argosy_services.agents.tools.schema import NAME, SchemaRefusedError, SchemaTool
from argosy_services.settings import McpServerSettings

log = structlog.get_logger("argosy.agents")

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 1_000
CONNECT_S = 30.0

_Call = tuple[str, Mapping[str, object], asyncio.Future[str]]


class McpServer:
    """One server and its tools. Belongs on one event loop."""

    def __init__(self, name: str, settings: McpServerSettings) -> None:
        self._name = name
        self._settings = settings
        self._calls: asyncio.Queue[_Call] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._tools: list[types.Tool] = []
        self._connecting = asyncio.Lock()
        self._is_closed = False

    async def start(self) -> list[McpTool]:
        """Connects, and asks for the tools. Raises ConnectionError."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(ready), name=f"mcp {self._name}")
        try:
            await asyncio.wait_for(ready, CONNECT_S)
        except BaseException as error:
            await self._end_session()
            if not isinstance(error, Exception):
                raise
            raise ConnectionError(f"MCP server '{self._name}' cannot be used: {error}") from error
        return [tool for tool in map(self._made, self._tools[:MAX_TOOLS]) if tool is not None]

    async def close(self) -> None:
        """Ends the session, and the program where there is one, for good."""
        self._is_closed = True
        await self._end_session()

    async def _end_session(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def call(self, tool: str, arguments: Mapping[str, object]) -> str:
        """What a tool says. Raises ToolError."""
        # One after another: who fails to connect ends the session that it began, which must not be somebody else's.
        async with self._connecting:
            if self._task is None or self._task.done():
                await self._reconnect()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await self._calls.put((tool, arguments, answer))
        return await answer

    async def _reconnect(self) -> None:
        if self._is_closed:
            raise ToolError(f"MCP server '{self._name}' was closed")
        try:
            await self.start()
        except ConnectionError as error:
            raise ToolError(str(error)) from error

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        try:
            async with _transport(self._settings) as streams, ClientSession(*streams) as session:
                await session.initialize()
                self._tools = (await session.list_tools()).tools
                ready.set_result(None)
                async with asyncio.TaskGroup() as group:
                    while True:
                        group.create_task(_answer(session, await self._calls.get()))
        except Exception as error:
            if ready.done():
                log.warning("an MCP server was lost", server=self._name, cause=repr(error))
            else:
                ready.set_exception(error)
        finally:
            if not ready.done():
                ready.set_exception(ConnectionError("the session was ended"))
            while not self._calls.empty():
                _fail(self._calls.get_nowait()[2], "the MCP server was lost")

    def _made(self, tool: types.Tool) -> McpTool | None:
        reads = tool.annotations is not None and tool.annotations.readOnlyHint is True
        try:
            return McpTool(self, self._name, tool, self._settings, Effect.READ if reads else Effect.WRITE)
        except SchemaRefusedError as error:
            log.warning("a tool cannot be used", server=self._name, tool=tool.name[:64], cause=str(error))
            return None


class McpTool(SchemaTool):
    """A tool of an MCP server, under the server's name and its own."""

    def __init__(
        self, server: McpServer, server_name: str, tool: types.Tool, settings: McpServerSettings, effect: Effect
    ) -> None:
        """Raises SchemaRefusedError."""
        name = f"{server_name}.{tool.name}"
        if not NAME.fullmatch(name):
            raise SchemaRefusedError("belongs to a tool whose name cannot be used")
        super().__init__(name, (tool.description or tool.name)[:MAX_DESCRIPTION_CHARS], tool.inputSchema, effect)
        self.timeout_s = settings.timeout_s
        self.needs_approval = settings.approval == "always" or (
            settings.approval == "writes" and effect is Effect.WRITE
        )
        self._server = server
        self._tool = tool.name

    async def run(self, arguments: Mapping[str, object]) -> str:
        """What the server's tool says. Raises ToolError where it fails."""
        return await self._server.call(self._tool, arguments)


@asynccontextmanager
async def _transport(settings: McpServerSettings) -> AsyncIterator[tuple[Any, Any]]:
    if settings.command:
        program, *arguments = settings.command
        env = {name: value.get_secret_value() for name, value in settings.env.items()}
        async with stdio_client(StdioServerParameters(command=program, args=arguments, env=env)) as (read, write):
            yield read, write
        return
    headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
    async with (
        httpx.AsyncClient(headers=headers, timeout=settings.timeout_s) as client,
        streamable_http_client(settings.url, http_client=client) as (read, write, _),
    ):
        yield read, write


async def _answer(session: ClientSession, call: _Call) -> None:
    tool, arguments, answer = call
    try:
        result = await session.call_tool(tool, dict(arguments))
    except McpError as error:
        _fail(answer, f"the MCP server refused the call: {error}")
        return
    except Exception as error:
        _fail(answer, f"the MCP server was lost: {type(error).__name__}")
        raise
    text = "\n".join(part.text for part in result.content if isinstance(part, types.TextContent))
    if result.isError:
        _fail(answer, text or "the tool failed")
    elif not answer.done():
        answer.set_result(text)


def _fail(answer: asyncio.Future[str], problem: str) -> None:
    if not answer.done():
        answer.set_exception(ToolError(problem))
