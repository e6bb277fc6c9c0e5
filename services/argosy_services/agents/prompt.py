"""Prompts are data: files under `prompts/` with a version, checked when they are read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from argosy_services.agents.tools.base import Tool


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Labels(_Part):
    """The words between which a model's thoughts and actions and the tools' observations stand."""

    thought: str
    action: str
    observation: str
    error: str


class ExampleCall(_Part):
    """A call of a tool, what it brought, and what the model thinks then."""

    tool: str
    arguments: dict[str, object]
    observation: str
    conclusion: str


class Example(_Part):
    """A task solved, with one tool or with none."""

    task: str
    thought: str
    call: ExampleCall | None = None
    answer: str


class Prompt(_Part):
    """How a model is told to work in steps (Yao et al., "ReAct", 2022), with worked examples."""

    version: int
    system: str
    tool: str
    labels: Labels
    examples: tuple[Example, ...]

    def system_text(self, tools: Sequence[Tool]) -> str:
        """The system message; it lists the tools."""
        lines = [
            self.tool.format(
                name=tool.name, arguments=", ".join(tool.parameters["properties"]), description=tool.description
            )
            for tool in tools
        ]
        return self.system.format(tools="\n".join(lines))

    def examples_of(self, tools: Sequence[Tool]) -> list[Example]:
        """The examples that can be followed with these tools."""
        names = {tool.name for tool in tools}
        return [example for example in self.examples if example.call is None or example.call.tool in names]


class Texts(_Part):
    """The texts that a strategy puts together; `{name}` in one is replaced, never formatted."""

    version: int
    texts: dict[str, str]


@functools.cache
def load_prompt(name: str) -> Prompt:
    """The prompt of that name. Raises pydantic.ValidationError where its file is not one."""
    return Prompt.model_validate(_read(name))


@functools.cache
def load_texts(name: str) -> dict[str, str]:
    """The texts of that name. Raises pydantic.ValidationError where its file holds none."""
    return Texts.model_validate(_read(name)).texts


def version_of(name: str) -> str:
    """Name and version of a prompt file, such as "react@1"."""
    return f"{name}@{_read(name)['version']}"


@functools.cache
def _read(name: str) -> Any:
    text = files("argosy_services.agents").joinpath("prompts", f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)
