"""Runs of agents."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from argosy.types.common import Usage


class AgentStrategy(enum.StrEnum):
    """How an agent goes about its task."""

    UNKNOWN = "unknown"
    REACT = "react"
    DIRECT = "direct"
    CHAIN_OF_THOUGHT = "chain_of_thought"
    CHAIN = "chain"
    TOOL_CALLING = "tool_calling"
    PLAN_AND_EXECUTE = "plan_and_execute"


class ToolEffect(enum.StrEnum):
    """What calling a tool does to the world: nothing, or something that must not happen twice."""

    UNKNOWN = "unknown"
    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class AgentBudget:
    """Bounds of a run; whichever is reached first ends it. None takes the server's default."""

    max_steps: int | None = None
    max_tokens: int | None = None
    max_duration: float | None = None
    max_tool_calls: int | None = None


@dataclass(frozen=True, slots=True)
class ChainPrompt:
    """One prompt of a chain; `{{name}}` in the template stands for the answer of an earlier one, `{{task}}` for the
    task. `for_each` names an earlier answer whose lines are `{{item}}` in turn; with `when` the prompt is asked only
    where that earlier answer holds `contains`.
    """

    name: str
    template: str
    for_each: str = ""
    when: str = ""
    contains: str = ""


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """Which calls wait for a person: those of all tools with effects, and those of the tools that are named."""

    writes: bool = False
    tools: Sequence[str] = ()


class RunOutcome(enum.StrEnum):
    """How a run ended."""

    UNKNOWN = "unknown"
    ANSWERED = "answered"
    STEP_LIMIT = "step_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 - an outcome, not a secret
    TIME_LIMIT = "time_limit"
    TOOL_CALL_LIMIT = "tool_call_limit"
    CANCELLED = "cancelled"


class RunState(enum.StrEnum):
    """Where a run stands. RUNNING is also what a run is left in whose server died; it can be resumed then, as one that
    was INTERRUPTED by an error.
    """

    UNKNOWN = "unknown"
    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    AWAITING_RESULT = "awaiting_result"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Event: the run begins; `budget` has the server's defaults filled in."""

    run_id: str
    model: str
    tools: tuple[str, ...]
    budget: AgentBudget
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class RunResumed:
    """Event: the run goes on after an interruption; `step` is the last that is recorded."""

    step: int


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """Event: more text of the thought of a step."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class ModelReplied:
    """Event: the model has written one thing, for so many tokens."""

    step: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class ToolRequested:
    """Event: the model asks for a tool. With `by_client` the caller of the run carries it out, after ToolStarted."""

    step: int
    call_id: str
    tool: str
    arguments: Mapping[str, Any]
    effect: ToolEffect = ToolEffect.UNKNOWN
    by_client: bool = False


@dataclass(frozen=True, slots=True)
class ApprovalRequested:
    """Event: a call waits for `approve`."""

    step: int
    call_id: str


@dataclass(frozen=True, slots=True)
class ApprovalDecided:
    """Event: a person allowed a call or refused it."""

    step: int
    call_id: str
    approved: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """Event: a tool with effects, or one of the caller's, is called now."""

    step: int
    call_id: str


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


AgentEvent: TypeAlias = (
    RunStarted
    | RunResumed
    | ThoughtDelta
    | ModelReplied
    | ToolRequested
    | ApprovalRequested
    | ApprovalDecided
    | ToolStarted
    | ToolReturned
    | Answer
    | RunFinished
)


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as its owner sees it. `outcome` and `answer` are None until there is one."""

    run_id: str
    state: RunState
    task: str
    strategy: AgentStrategy
    created: datetime | None
    updated: datetime | None
    error: str
    events: int
    outcome: RunOutcome | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """A tool that runs may use; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    effect: ToolEffect = ToolEffect.UNKNOWN
    needs_approval: bool = False
    timeout: float = 0.0
