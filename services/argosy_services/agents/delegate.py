"""Sub-agents: a tool that is another run, within the budget of the run that calls it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from argosy_services.agents.strategies import react
from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError
from argosy_services.agents.work import Work


class DelegateArguments(Arguments):
    task: str = Field(min_length=1, max_length=500, description="What the helper is to find out or do.")


class Delegate(BuiltInTool):
    """Lets a helper with the same tools, but this one, work on a part of the task by ReAct. Its steps, tokens, calls
    and time are those of the run, and a run that is resumed goes on within it.
    """

    name = "delegate"
    description = "Lets a helper with the same tools work on a part of the task and gives its answer."
    arguments = DelegateArguments
    # What the helper says may come from anywhere.
    trusted = False

    async def run(self, arguments: DelegateArguments) -> str:
        """Never called: the work is part of the run that calls it."""
        raise ToolError("a helper works only within a run")

    async def solve(self, work: Work, arguments: Any) -> str:
        """The helper's answer."""
        task = str(self.validate(arguments).model_dump()["task"])
        tools = [tool for tool in work.tools if tool.name != self.name]
        return (await react.solve(work, task, tools)).text
