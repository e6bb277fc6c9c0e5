"""Runs of agents."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from argosy.types.common import Usage


@dataclass(frozen=True, slots=True)
class AgentBudget:
    """Bounds of a run; whichever is reached first ends it. None takes the server's default."""

    max_steps: int | None = None
    max_tokens: int | None = None
    max_duration: float | None = None


class RunOutcome(enum.StrEnum):
    """How a run ended."""

    UNKNOWN = "unknown"
    ANSWERED = "answered"
    STEP_LIMIT = "step_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 - an outcome, not a secret
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Event: the run begins; `budget` has the server's defaults filled in."""

    run_id: str
    model: str
    tools: tuple[str, ...]
    budget: AgentBudget


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """Event: more text of the thought of a step."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolRequested:
    """Event: the model asks for a tool."""

    step: int
    call_id: str
    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """Event: the tool answered, or failed where `is_error`; the model goes on either way."""

    step: int
    call_id: str
    observation: str
    is_error: bool
    duration: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Event: the model gave its answer."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """Event: the run is over. Comes once, last."""

    outcome: RunOutcome
    steps: int
    tool_calls: int
    usage: Usage
    duration: float


AgentEvent: TypeAlias = RunStarted | ThoughtDelta | ToolRequested | ToolReturned | Answer | RunFinished


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """A tool that runs may use; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]
