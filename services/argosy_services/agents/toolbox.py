"""The tools of a server, as its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from argosy_services.agents.delegate import Delegate
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.tools.calculator import Calculator
from argosy_services.agents.tools.clock import Clock
from argosy_services.agents.tools.dates import Calendar
from argosy_services.agents.tools.http_get import HttpGet
from argosy_services.agents.tools.python import PythonSandbox
from argosy_services.agents.tools.units import UnitConverter
from argosy_services.settings import AgentSettings

if TYPE_CHECKING:
    from argosy_services.agents.tools.mcp import McpServer


class Toolbox:
    """Makes tools, and ends what they hold."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._servers: list[McpServer] = []

    def safe(self) -> Sequence[Tool]:
        """The tools that every server has."""
        return [Calculator(), Clock(), Calendar(), UnitConverter()]

    async def open(self) -> Sequence[Tool]:
        """The tools that the settings turn on. Raises SandboxUnavailableError and ConnectionError."""
        tools: list[Tool] = []
        if self._settings.http_hosts:
            tools.append(HttpGet(self._settings.http_hosts))
        if self._settings.python:
            sandbox = PythonSandbox()
            await sandbox.check()
            tools.append(sandbox)
        if self._settings.delegate:
            tools.append(Delegate())
        for name, server in self._settings.mcp.items():
            if not server.complete:
                raise ConnectionError(f"MCP server '{name}' has secrets and nothing else: set its command or url")
            # Imports a web client; few servers need it.
            from argosy_services.agents.tools.mcp import McpServer

            self._servers.append(McpServer(name, server))
            tools += await self._servers[-1].start()
        return tools

    def secrets(self) -> list[str]:
        """What must enter no prompt: the secrets of MCP servers that are long enough to be some."""
        values = [
            value.get_secret_value()
            for server in self._settings.mcp.values()
            for value in (*server.env.values(), *server.headers.values())
        ]
        return [value for value in values if len(value) >= 8]

    async def close(self) -> None:
        """Ends the sessions with other servers."""
        for server in self._servers:
            await server.close()
