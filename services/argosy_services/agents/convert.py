"""Requests and events between the schema and the vocabulary of agents."""

from __future__ import annotations

import json

from google.protobuf.duration_pb2 import Duration

from argosy.api.agents.v1 import agent_pb2, agents_service_pb2
from argosy.api.common.v1 import usage_pb2
from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.tools.base import Tool, parameters_schema
from argosy_services.agents.types import AgentSpec, Budget, Event, Outcome, RunFinished, RunStarted, ThoughtDelta
from argosy_services.errors import invalid_field

_STRATEGIES = (agent_pb2.AGENT_STRATEGY_UNSPECIFIED, agent_pb2.AGENT_STRATEGY_REACT)

_OUTCOMES = {
    Outcome.ANSWERED: agent_pb2.RUN_OUTCOME_ANSWERED,
    Outcome.STEP_LIMIT: agent_pb2.RUN_OUTCOME_STEP_LIMIT,
    Outcome.TOKEN_LIMIT: agent_pb2.RUN_OUTCOME_TOKEN_LIMIT,
    Outcome.TIME_LIMIT: agent_pb2.RUN_OUTCOME_TIME_LIMIT,
}


def read_spec(given: agent_pb2.AgentSpec) -> AgentSpec:
    """What a request asks for; limits are the service's. Raises INVALID_FIELD for a strategy that does not exist."""
    if given.strategy not in _STRATEGIES:
        raise invalid_field("spec.strategy", "is not known", limit="AGENT_STRATEGY_REACT", value=given.strategy)
    return AgentSpec(
        task=given.task,
        tools=tuple(given.tools),
        budget=_read_budget(given.budget),
        model=given.model,
        adapter=given.adapter,
        temperature=given.temperature if given.HasField("temperature") else 0.0,
        seed=given.seed if given.HasField("seed") else None,
    )


def write_event(event: Event, sequence: int) -> agents_service_pb2.RunAgentResponse:
    """One event of a run; `sequence` is its number, from 1."""
    response = agents_service_pb2.RunAgentResponse(sequence=sequence)
    match event:
        case RunStarted():
            response.started.CopyFrom(
                agent_pb2.RunStarted(
                    run_id=event.run_id, model=event.model, tools=event.tools, budget=_write_budget(event.budget)
                )
            )
        case ThoughtDelta():
            response.thought_delta.CopyFrom(agent_pb2.ThoughtDelta(step=event.step, text=event.text))
        case ToolRequest():
            response.tool_requested.CopyFrom(
                agent_pb2.ToolRequested(
                    step=event.step,
                    call_id=event.call_id,
                    tool=event.tool,
                    arguments_json=json.dumps(event.arguments, ensure_ascii=False),
                )
            )
        case Observation():
            response.tool_returned.CopyFrom(
                agent_pb2.ToolReturned(
                    step=event.step,
                    call_id=event.call_id,
                    observation=event.text,
                    is_error=event.is_error,
                    duration=_write_seconds(event.seconds),
                )
            )
        case Answer():
            response.answer.CopyFrom(agent_pb2.Answer(step=event.step, text=event.text))
        case RunFinished():
            response.finished.CopyFrom(_write_finished(event))
    return response


def write_tool(tool: Tool) -> agent_pb2.ToolInfo:
    """A tool as callers see it."""
    return agent_pb2.ToolInfo(
        name=tool.name,
        description=tool.description,
        parameters_json_schema=json.dumps(parameters_schema(tool), ensure_ascii=False),
    )


def _read_budget(given: agent_pb2.AgentBudget) -> Budget:
    budget = Budget()
    return Budget(
        max_steps=given.max_steps if given.HasField("max_steps") else budget.max_steps,
        max_tokens=given.max_tokens if given.HasField("max_tokens") else budget.max_tokens,
        max_seconds=(
            given.max_duration.seconds + given.max_duration.nanos / 1e9
            if given.HasField("max_duration")
            else budget.max_seconds
        ),
    )


def _write_budget(budget: Budget) -> agent_pb2.AgentBudget:
    return agent_pb2.AgentBudget(
        max_steps=budget.max_steps, max_tokens=budget.max_tokens, max_duration=_write_seconds(budget.max_seconds)
    )


def _write_finished(event: RunFinished) -> agent_pb2.RunFinished:
    return agent_pb2.RunFinished(
        outcome=_OUTCOMES[event.outcome],
        steps=event.steps,
        tool_calls=event.tool_calls,
        usage=usage_pb2.Usage(
            prompt_tokens=event.usage.prompt_tokens,
            cached_tokens=event.usage.cached_tokens,
            completion_tokens=event.usage.completion_tokens,
        ),
        duration=_write_seconds(event.seconds),
    )


def _write_seconds(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
