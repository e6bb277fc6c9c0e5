"""Explanations in the words of the schema."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from argosy.api.generation.v1 import explanation_pb2 as pb
from argosy_services.generation.explanation import Explanation, Wait


def write_explanation(explanation: Explanation) -> pb.Explanation:
    """Where the time of a request went."""
    came = Timestamp()
    came.FromDatetime(explanation.came)
    return pb.Explanation(
        request_id=explanation.request_id,
        state=_number(pb.RequestState, "REQUEST_STATE_", explanation.state.value),
        reason=explanation.reason,
        model=explanation.model,
        adapter=explanation.adapter,
        priority=explanation.priority,
        arrive_time=came,
        total=_duration(explanation.seconds),
        stages=[
            pb.StageTime(stage=_number(pb.Stage, "STAGE_", stage.value), duration=_duration(seconds))
            for stage, seconds in explanation.stages
        ],
        waits=map(_wait, explanation.waits),
        sequence_count=explanation.sequences,
        prompt_tokens=explanation.prompt_tokens,
        cached_tokens=explanation.cached_tokens,
        completion_tokens=explanation.completion_tokens,
    )


def _wait(wait: Wait) -> pb.Wait:
    ahead = wait.ahead
    return pb.Wait(
        cause=_number(pb.WaitCause, "WAIT_CAUSE_", wait.cause.value),
        duration=_duration(wait.seconds),
        ahead=None
        if ahead is None
        else pb.Ahead(
            own=ahead.own,
            others=ahead.others,
            higher_priority=ahead.higher_priority,
            waiting_tokens=ahead.waiting_tokens,
        ),
        short_of=wait.short_of,
        adapter=wait.adapter,
        times=wait.times,
    )


def _number(kind: Any, prefix: str, value: str) -> Any:
    """The value of an enum of the schema whose name is that of ours."""
    return kind.Value(prefix + value.replace(" ", "_").upper())


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(max(0.0, seconds) * 1e9))
    return duration
