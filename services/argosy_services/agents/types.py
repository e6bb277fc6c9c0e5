"""The vocabulary of agents: what a run is asked for, and the events that it sends, as in agents_service.proto."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from argosy_services.agents.memory import Answer, Observation, ToolRequest


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of a run: steps, generated tokens over all steps, seconds. Whichever is reached first ends it."""

    max_steps: int = 8
    max_tokens: int = 2_048
    max_seconds: float = 120.0


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


class Outcome(enum.Enum):
    """How a run ended.

    ANSWERED: the model gave its answer. STEP_LIMIT: it had to answer in the last step without a result of the tools to
    go by; that answer is sent all the same. TOKEN_LIMIT, TIME_LIMIT: there may be no answer.
    """

    ANSWERED = "answered"
    STEP_LIMIT = "step_limit"
    TOKEN_LIMIT = "token_limit"  # noqa: S105 (no password)
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a run consumed, over all its completions."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run begins. `model` is the full name, `tools` are sorted, `budget` has its defaults filled in."""

    run_id: str
    model: str
    tools: tuple[str, ...]
    budget: Budget


@dataclass(frozen=True, slots=True)
class ThoughtDelta:
    """More text of the thought of a step."""

    step: int
    text: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over; nothing follows."""

    outcome: Outcome
    steps: int
    tool_calls: int
    usage: Usage
    seconds: float


Event = RunStarted | ThoughtDelta | ToolRequest | Observation | Answer | RunFinished
