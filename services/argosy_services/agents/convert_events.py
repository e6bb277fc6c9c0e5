"""Events of runs, from the vocabulary of agents to the schema."""

from __future__ import annotations

import json
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration

from argosy.api.agents.v1 import agent_pb2 as pb
from argosy.api.agents.v1 import agents_service_pb2 as rpc
from argosy.api.common.v1 import usage_pb2
from argosy_services.agents.memory import Answer, Observation, ToolRequest
from argosy_services.agents.tools.base import Effect
from argosy_services.agents.types import (
    ApprovalDecided,
    ApprovalRequested,
    Budget,
    ModelReplied,
    Outcome,
    Recorded,
    RunFinished,
    RunResumed,
    RunStarted,
    ThoughtDelta,
    ToolStarted,
    Usage,
)

Response = TypeVar("Response", rpc.RunAgentResponse, rpc.ResumeRunResponse, rpc.WatchRunResponse, rpc.ReplayRunResponse)

EFFECTS = {Effect.READ: pb.TOOL_EFFECT_READ, Effect.WRITE: pb.TOOL_EFFECT_WRITE}

OUTCOMES = {
    Outcome.ANSWERED: pb.RUN_OUTCOME_ANSWERED,
    Outcome.STEP_LIMIT: pb.RUN_OUTCOME_STEP_LIMIT,
    Outcome.TOKEN_LIMIT: pb.RUN_OUTCOME_TOKEN_LIMIT,
    Outcome.TIME_LIMIT: pb.RUN_OUTCOME_TIME_LIMIT,
    Outcome.TOOL_CALL_LIMIT: pb.RUN_OUTCOME_TOOL_CALL_LIMIT,
    Outcome.CANCELLED: pb.RUN_OUTCOME_CANCELLED,
}


def write_event(one: Recorded, response: Response) -> Response:
    """Fills in an event of a run and its number."""
    response.sequence = one.sequence
    event = one.event
    match event:
        case RunStarted():
            response.started.CopyFrom(_started(event))
        case RunResumed():
            response.resumed.CopyFrom(pb.RunResumed(step=event.step))
        case ThoughtDelta():
            response.thought_delta.CopyFrom(pb.ThoughtDelta(step=event.step, text=event.text))
        case ModelReplied():
            response.model_replied.CopyFrom(pb.ModelReplied(step=event.step, usage=_usage(event.usage)))
        case ToolRequest():
            response.tool_requested.CopyFrom(_requested(event))
        case ApprovalRequested():
            response.approval_requested.CopyFrom(pb.ApprovalRequested(step=event.step, call_id=event.call_id))
        case ApprovalDecided():
            response.approval_decided.CopyFrom(
                pb.ApprovalDecided(step=event.step, call_id=event.call_id, approved=event.approved, reason=event.reason)
            )
        case ToolStarted():
            response.tool_started.CopyFrom(pb.ToolStarted(step=event.step, call_id=event.call_id))
        case Observation():
            response.tool_returned.CopyFrom(_returned(event))
        case Answer():
            response.answer.CopyFrom(pb.Answer(step=event.step, text=event.text))
        case RunFinished():
            response.finished.CopyFrom(_finished(event))
    return response


def write_budget(budget: Budget) -> pb.AgentBudget:
    """Bounds of a run, all of them."""
    return pb.AgentBudget(
        max_steps=budget.max_steps,
        max_tokens=budget.max_tokens,
        max_duration=write_seconds(budget.max_seconds),
        max_tool_calls=budget.max_tool_calls,
    )


def write_seconds(seconds: float) -> Duration:
    """A duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _started(event: RunStarted) -> pb.RunStarted:
    return pb.RunStarted(
        run_id=event.run_id,
        model=event.model,
        tools=event.tools,
        budget=write_budget(event.budget),
        prompt=event.prompt,
    )


def _requested(event: ToolRequest) -> pb.ToolRequested:
    return pb.ToolRequested(
        step=event.step,
        call_id=event.call_id,
        tool=event.tool,
        arguments_json=json.dumps(event.arguments, ensure_ascii=False),
        effect=EFFECTS[event.effect],
        by_client=event.by_client,
    )


def _returned(event: Observation) -> pb.ToolReturned:
    return pb.ToolReturned(
        step=event.step,
        call_id=event.call_id,
        observation=event.text,
        is_error=event.is_error,
        duration=write_seconds(event.seconds),
    )


def _finished(event: RunFinished) -> pb.RunFinished:
    return pb.RunFinished(
        outcome=OUTCOMES[event.outcome],
        steps=event.steps,
        tool_calls=event.tool_calls,
        usage=_usage(event.usage),
        duration=write_seconds(event.seconds),
    )


def _usage(usage: Usage) -> usage_pb2.Usage:
    return usage_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
    )
