"""Events as text that outlives a process, and back."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.types import (
    AgentSpec,
    ApprovalDecided,
    ApprovalRequested,
    Event,
    ModelReplied,
    RunFinished,
    RunResumed,
    RunStarted,
    ThoughtDelta,
    ToolStarted,
)

_EVENTS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind)
    for kind in (
        RunStarted,
        RunResumed,
        ThoughtDelta,
        ModelReplied,
        ToolRequest,
        ApprovalRequested,
        ApprovalDecided,
        ToolStarted,
        Observation,
        Answer,
        RunFinished,
    )
}
_SPEC = TypeAdapter(AgentSpec)


def write_event(event: Event) -> tuple[str, str]:
    """Kind and JSON of an event."""
    kind = type(event).__name__
    return kind, _EVENTS[kind].dump_json(event).decode()


def read_event(kind: str, text: str) -> Event:
    """The event that `write_event` wrote. Raises KeyError or pydantic.ValidationError for what it did not."""
    event: Event = _EVENTS[kind].validate_json(text)
    return event


def write_spec(spec: AgentSpec) -> str:
    """JSON of what a run was asked for."""
    return _SPEC.dump_json(spec).decode()


def read_spec(text: str) -> AgentSpec:
    """What `write_spec` wrote."""
    return _SPEC.validate_json(text)
