"""Runs of agents."""

from __future__ import annotations

from collections.abc import Sequence

from argosy._convert import common
from argosy.api.agents.v1 import agent_pb2 as pb
from argosy.api.agents.v1 import agents_service_pb2 as rpc
from argosy.errors import ProtocolError
from argosy.types.agents import (
    AgentBudget,
    AgentEvent,
    Answer,
    RunFinished,
    RunOutcome,
    RunStarted,
    ThoughtDelta,
    ToolInfo,
    ToolRequested,
    ToolReturned,
)


def run_request(
    task: str,
    *,
    tools: Sequence[str],
    budget: AgentBudget,
    model: str,
    adapter: str,
    temperature: float | None,
    seed: int | None,
) -> rpc.RunAgentRequest:
    """A task to run."""
    names = common.texts_of("tools", tools)
    spec = pb.AgentSpec(task=task, tools=names, model=model, adapter=adapter, temperature=temperature, seed=seed)
    if budget.max_steps is not None:
        common.set_field(spec.budget, "max_steps", budget.max_steps, name="budget.max_steps")
    if budget.max_tokens is not None:
        common.set_field(spec.budget, "max_tokens", budget.max_tokens, name="budget.max_tokens")
    if budget.max_duration is not None:
        spec.budget.max_duration.CopyFrom(common.duration(budget.max_duration))
    return rpc.RunAgentRequest(spec=spec)


def event(message: rpc.RunAgentResponse) -> AgentEvent | None:
    """One event of a run; None for a keep-alive."""
    match message.WhichOneof("event"):
        case "started":
            started = message.started
            return RunStarted(started.run_id, started.model, tuple(started.tools), _budget(started.budget))
        case "thought_delta":
            return ThoughtDelta(message.thought_delta.step, message.thought_delta.text)
        case "tool_requested":
            call = message.tool_requested
            arguments = common.json_object(call.arguments_json, "a tool's arguments")
            return ToolRequested(call.step, call.call_id, call.tool, arguments)
        case "tool_returned":
            result = message.tool_returned
            took = common.seconds(result.duration)
            return ToolReturned(result.step, result.call_id, result.observation, result.is_error, took)
        case "answer":
            return Answer(message.answer.step, message.answer.text)
        case "finished":
            end = message.finished
            outcome = common.enum_of(RunOutcome, pb.RunOutcome, "RUN_OUTCOME_", end.outcome)
            usage, took = common.usage(end.usage), common.seconds(end.duration)
            return RunFinished(outcome, end.steps, end.tool_calls, usage, took)
        case _:
            return None


def _budget(message: pb.AgentBudget) -> AgentBudget:
    return AgentBudget(
        max_steps=common.optional(message, "max_steps"),
        max_tokens=common.optional(message, "max_tokens"),
        max_duration=common.seconds(message.max_duration) if message.HasField("max_duration") else None,
    )


class RunReader:
    """Reads the events of a run and keeps its answer and its end."""

    def __init__(self) -> None:
        self.answer: str | None = None
        self.finished: RunFinished | None = None
        self._run_id = ""

    def read(self, message: rpc.RunAgentResponse) -> AgentEvent | None:
        """The event in a message."""
        read = event(message)
        match read:
            case RunStarted():
                self._run_id = read.run_id
            case Answer():
                self.answer = read.text
            case RunFinished():
                self.finished = read
        return read

    def end(self) -> None:
        """Raises ProtocolError unless the run was finished."""
        if self.finished is None:
            raise ProtocolError(f"the stream of run {self._run_id or '(not started)'} ended before the run did")


def tool(message: pb.ToolInfo) -> ToolInfo:
    """A tool that runs may use."""
    schema = common.json_object(message.parameters_json_schema, "a tool's parameters")
    return ToolInfo(message.name, message.description, schema)
