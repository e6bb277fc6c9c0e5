"""Explanations out of their messages."""

from __future__ import annotations

from datetime import UTC

from argosy._convert import common
from argosy.api.generation.v1 import explanation_pb2 as pb
from argosy.types.explanation import Ahead, Explanation, RequestState, Stage, StageTime, Wait, WaitCause


def explanation(message: pb.Explanation) -> Explanation:
    """Where the time of a request went."""
    return Explanation(
        request_id=message.request_id,
        state=common.enum_of(RequestState, pb.RequestState, "REQUEST_STATE_", message.state),
        reason=message.reason,
        model=message.model,
        adapter=message.adapter,
        priority=message.priority,
        arrived=message.arrive_time.ToDatetime(UTC),
        seconds=message.total.ToNanoseconds() / 1e9,
        stages=tuple(
            StageTime(common.enum_of(Stage, pb.Stage, "STAGE_", one.stage), one.duration.ToNanoseconds() / 1e9)
            for one in message.stages
        ),
        waits=tuple(_wait(one) for one in message.waits),
        sequence_count=message.sequence_count,
        prompt_tokens=message.prompt_tokens,
        cached_tokens=message.cached_tokens,
        completion_tokens=message.completion_tokens,
    )


def _wait(message: pb.Wait) -> Wait:
    ahead = message.ahead
    return Wait(
        cause=common.enum_of(WaitCause, pb.WaitCause, "WAIT_CAUSE_", message.cause),
        seconds=message.duration.ToNanoseconds() / 1e9,
        ahead=Ahead(ahead.own, ahead.others, ahead.higher_priority, ahead.waiting_tokens)
        if message.HasField("ahead")
        else None,
        short_of=message.short_of,
        adapter=message.adapter,
        times=message.times,
    )
