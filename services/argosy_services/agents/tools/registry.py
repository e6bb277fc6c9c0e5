"""The tools of a server, by name."""

from __future__ import annotations

from collections.abc import Sequence

from argosy_services.agents.tools.base import Tool
from argosy_services.errors import ArgosyError, Reason

FINAL_ANSWER = "final_answer"
"""The name under which the model gives its answer. No tool may have it."""


class ToolRegistry:
    """Finds tools. Immutable."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """Raises ValueError for a name that is taken, or arguments whose schema cannot stand inside another one."""
        self._tools: dict[str, Tool] = {}
        for tool in sorted(tools, key=lambda tool: tool.name):
            if tool.name in self._tools or tool.name == FINAL_ANSWER:
                raise ValueError(f"there is a tool named {tool.name} already")
            if "$defs" in tool.parameters:
                raise ValueError(f"the arguments of {tool.name} must not refer to other models")
            self._tools[tool.name] = tool

    def all(self) -> list[Tool]:
        """Every tool, ordered by name."""
        return list(self._tools.values())

    def select(self, names: Sequence[str]) -> list[Tool]:
        """The named tools, ordered by name; all of them where none is named. Raises TOOL_NOT_FOUND."""
        for name in names:
            if name not in self._tools:
                raise ArgosyError(
                    Reason.TOOL_NOT_FOUND,
                    f"there is no tool '{name[:100]}' here; there are: {', '.join(self._tools) or 'none'}",
                    tool=name,
                )
        chosen = set(names or self._tools)
        return [tool for tool in self.all() if tool.name in chosen]
