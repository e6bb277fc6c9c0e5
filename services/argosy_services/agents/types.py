"""The vocabulary of agents: what a run is asked for, the events that it leaves, and where it stands."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.tools.base import Effect


class Strategy(enum.Enum):
    """How an agent goes about its task; see the modules of `strategies/`."""

    DIRECT = "direct"
    CHAIN_OF_THOUGHT = "chain_of_thought"
    CHAIN = "chain"
    REACT = "react"
    TOOL_CALLING = "tool_calling"
    PLAN_AND_EXECUTE = "plan_and_execute"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of a run: steps, generated tokens over all steps, calls of tools, seconds. Whichever is reached first ends
    it. Time that a run waits for a person or for its caller does not count.
    """

    max_steps: int = 8
    max_tokens: int = 2_048
    max_seconds: float = 120.0
    max_tool_calls: int = 32


@dataclass(frozen=True, slots=True)
class ChainPrompt:
    """One prompt of a chain; `{{name}}` in it stands for the answer of an earlier one, `{{task}}` for the task.

    With `for_each` it is asked once for every line of that earlier answer, which is `{{item}}`. With `when` it is asked
    only where that earlier answer contains `contains`, whatever its case; its own answer is empty otherwise.
    """

    name: str
    template: str
    for_each: str = ""
    when: str = ""
    contains: str = ""


@dataclass(frozen=True, slots=True)
class ClientToolSpec:
    """A tool that the caller carries out. `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, object]
    effect: Effect = Effect.WRITE


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """A task and how to go about it; meaning and limits are those of `AgentSpec` in agent.proto."""

    task: str
    tools: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    model: str = ""
    adapter: str = ""
    temperature: float = 0.0
    seed: int | None = None
    strategy: Strategy = Strategy.REACT
    votes: int = 1
    chain: tuple[ChainPrompt, ...] = ()
    client_tools: tuple[ClientToolSpec, ...] = ()
    passages: tuple[str, ...] = ()
    approve_writes: bool = False
    approve_tools: tuple[str, ...] = ()
    tool_required: bool = False


class Outcome(enum.Enum):
    """How a run ended.

    ANSWERED: the model gave its answer. STEP_LIMIT: it had to answer in the last step without a result of the tools to
    go by; that answer is sent all the same. TOKEN_LIMIT, TIME_LIMIT, TOOL_CALL_LIMIT: there may be no answer.
    CANCELLED: its owner ended it.
    """

    ANSWERED = "answered"
    STEP_LIMIT = "step_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 (no password)
    TIME_LIMIT = "time_limit"
    TOOL_CALL_LIMIT = "tool_call_limit"
    CANCELLED = "cancelled"


class RunState(enum.Enum):
    """Where a run stands. RUNNING is also what a run is left in whose server died; INTERRUPTED is one that an error
    stopped. Both can be resumed.
    """

    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    AWAITING_RESULT = "awaiting_result"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a run consumed, over all its completions."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run begins. `model` is the full name, `tools` are sorted, `budget` has its defaults filled in; `prompt` is
    the name and version of the prompt file.
    """

    run_id: str
    model: str
    tools: tuple[str, ...]
    budget: Budget
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class RunResumed:
    """The run goes on after an interruption, from what is recorded."""

    step: int


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """More text that the model writes in a step, ahead of what it decides."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class ModelReplied:
    """One completion is done: a step is complete as far as its model is concerned. `cut` is set where the budget or the
    bound of the completion ended it.
    """

    step: int
    text: str
    usage: Usage
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ApprovalRequested:
    """A call waits for a person's decision."""

    step: int
    call_id: str


@dataclass(frozen=True, slots=True)
class ApprovalDecided:
    """A person allowed a call or refused it, with the reason that the model gets to see."""

    step: int
    call_id: str
    approved: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A tool with effects is about to be called: from here on the server never makes the call again. For a tool of the
    caller's: the call may be made now.
    """

    step: int
    call_id: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over; nothing follows."""

    outcome: Outcome
    steps: int
    tool_calls: int
    usage: Usage
    seconds: float


Event = (
    RunStarted
    | RunResumed
    | ThoughtDelta
    | ModelReplied
    | ToolRequest
    | ApprovalRequested
    | ApprovalDecided
    | ToolStarted
    | Observation
    | Answer
    | RunFinished
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event in its place: `sequence` counts from 1 within the run, `key` names the completion that it belongs to,
    `seconds` is how much of the run's time was spent.
    """

    sequence: int
    event: Event
    key: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as its owner sees it; times are seconds since 1970. `error` says what interrupted it."""

    run_id: str
    state: RunState
    spec: AgentSpec
    created: float
    updated: float
    error: str = ""
    events: int = 0
    outcome: Outcome | None = None
    answer: str | None = None
