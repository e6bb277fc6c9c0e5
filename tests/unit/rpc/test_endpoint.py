"""What the decorators promise, through the wire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from structlog.testing import capture_logs

from argosy.api.agents.v1 import agents_service_pb2 as agents_pb
from argosy.api.embeddings.v1 import embeddings_service_pb2 as embeddings_pb
from argosy_services import metrics
from argosy_services.errors import ArgosyError, Reason, invalid_field
from argosy_services.rpc.status import DETAILS_KEY

from .conftest import ScriptedServicer, Wire


def details(error: grpc.aio.AioRpcError) -> dict[type[Message], Any]:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    found: dict[type[Message], Any] = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                found[kind] = kind.FromString(packed.value)
    return found


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    return details(error)[error_details_pb2.ErrorInfo]


def trailer(metadata: Any, key: str) -> str:
    return dict(metadata or ())[key]


def count(method: str, code: str, reason: str = "") -> float:
    labels = {"service": ScriptedServicer.SERVICE, "method": method, "code": code, "reason": reason}
    return metrics.RPC_TOTAL.labels(**labels).now()


def running(method: str) -> float:
    return metrics.RPC_RUNNING.labels(service=ScriptedServicer.SERVICE, method=method).now()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def raising(error: Exception) -> Callable[..., Any]:
    async def answer(request: Any, call: Any) -> Any:
        raise error

    return answer


def raising_after_one(error: Exception) -> Callable[..., Any]:
    async def answers(request: Any, call: Any) -> AsyncIterator[Any]:
        yield agents_pb.RunAgentResponse(sequence=1)
        raise error

    return answers


async def collect(call: Any) -> tuple[list[Any], grpc.aio.AioRpcError | None]:
    events = []
    try:
        async for event in call:
            events.append(event)
    except grpc.aio.AioRpcError as error:
        return events, error
    return events, None


async def test_an_answer_carries_the_request_id(wire: Wire) -> None:
    before = count("Ask", "OK")
    call = wire.ask(metadata=(*wire.metadata, ("x-request-id", "abc-1")))
    await call
    assert trailer(await call.trailing_metadata(), "x-request-id") == "abc-1"
    assert count("Ask", "OK") == before + 1


@pytest.mark.parametrize("given", ["", "with space", "x" * 65, 'quote"'])
async def test_an_unfit_request_id_is_replaced(wire: Wire, given: str) -> None:
    call = wire.ask(metadata=(*wire.metadata, ("x-request-id", given)))
    await call
    assert trailer(await call.trailing_metadata(), "x-request-id").isalnum()


async def test_a_stream_sends_its_events_and_the_request_id(wire: Wire) -> None:
    call = wire.tell(metadata=(*wire.metadata, ("x-request-id", "abc-2")))
    events, error = await collect(call)
    assert ([event.sequence for event in events], error) == ([1, 2, 3], None)
    assert trailer(await call.trailing_metadata(), "x-request-id") == "abc-2"


async def test_a_unary_error_carries_all_its_details(wire: Wire) -> None:
    wire.servicer.answer = raising(invalid_field("spec.top_p", "must be at most 1", limit=1, value=2.5))
    before = count("Ask", "INVALID_ARGUMENT", "INVALID_FIELD")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask(metadata=(*wire.metadata, ("x-request-id", "abc-3")))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = details(caught.value)
    reason = found[error_details_pb2.ErrorInfo]
    assert (reason.domain, reason.reason) == ("argosy", "INVALID_FIELD")
    assert dict(reason.metadata) == {"field": "spec.top_p", "limit": "1", "value": "2.5"}
    violation = found[error_details_pb2.BadRequest].field_violations[0]
    assert (violation.field, violation.reason) == ("spec.top_p", "INVALID_FIELD")
    assert error_details_pb2.RetryInfo not in found
    assert trailer(caught.value.trailing_metadata(), "x-request-id") == "abc-3"
    assert count("Ask", "INVALID_ARGUMENT", "INVALID_FIELD") == before + 1


async def test_a_stream_error_comes_after_an_empty_event_with_all_its_details(wire: Wire) -> None:
    wire.servicer.answers = raising_after_one(
        ArgosyError(Reason.QUEUE_FULL, "full", retry_after_s=1.5, limit=8, value=9)
    )
    events, error = await collect(wire.tell())
    assert events == [agents_pb.RunAgentResponse(sequence=1), agents_pb.RunAgentResponse()]
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details(error)
    assert found[error_details_pb2.ErrorInfo].reason == "QUEUE_FULL"
    assert found[error_details_pb2.RetryInfo].retry_delay.ToNanoseconds() == 1_500_000_000
    assert error_details_pb2.BadRequest not in found


async def test_a_bug_is_hidden_from_the_caller_and_told_to_the_log(wire: Wire) -> None:
    wire.servicer.answer = raising(KeyError("secret detail"))
    with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask(metadata=(*wire.metadata, ("x-request-id", "abc-4")))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    assert info(caught.value).metadata["request_id"] == "abc-4"
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["request_id"] == "abc-4"
    assert isinstance(line["exc_info"], KeyError)
    assert line["exc_info"].__traceback__ is not None


async def test_a_bug_in_a_stream_is_hidden_too(wire: Wire) -> None:
    wire.servicer.answers = raising_after_one(ValueError("secret detail"))
    events, error = await collect(wire.tell())
    assert len(events) == 2
    assert error is not None
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.details())


async def test_a_timeout_of_the_logic_is_a_bug_not_a_deadline(wire: Wire) -> None:
    wire.servicer.answer = raising(TimeoutError())
    with capture_logs(), pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask(timeout=30)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_a_deadline_during_a_call_frees_it_and_counts_as_such(wire: Wire) -> None:
    freed = asyncio.Event()

    async def sleep(request: Any, call: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            freed.set()

    wire.servicer.answer = sleep
    before = _deadlines("Ask")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask(timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(freed.wait(), 1)
    await eventually(lambda: _deadlines("Ask") == before + 1)
    await eventually(lambda: wire.gate.running == 0)


async def test_a_deadline_during_a_stream_frees_it_and_counts_as_such(wire: Wire) -> None:
    freed = asyncio.Event()

    async def trickle(request: Any, call: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield agents_pb.RunAgentResponse(sequence=1)
                await asyncio.sleep(0.03)
        finally:
            freed.set()

    wire.servicer.answers = trickle
    before = _deadlines("Tell")
    events, error = await collect(wire.tell(timeout=0.2))
    assert events
    assert error is not None
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(freed.wait(), 1)
    await eventually(lambda: _deadlines("Tell") == before + 1)


def _deadlines(method: str) -> float:
    # Whose clock is first decides whether the status was written before the call was cancelled.
    return count(method, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED") + count(method, "DEADLINE_EXCEEDED")


async def test_a_deadline_that_the_logic_meets_is_seen_by_it(wire: Wire) -> None:
    seen = []

    async def look(request: Any, call: Any) -> Any:
        seen.append(call.remaining())
        return agents_pb.RunAgentResponse()

    wire.servicer.answer = look
    await wire.ask(timeout=30)
    await wire.ask()
    assert 29 < seen[0] <= 30.4
    assert seen[1] is None


async def test_a_client_that_cancels_is_no_error(wire: Wire) -> None:
    started, freed = asyncio.Event(), asyncio.Event()

    async def sleep(request: Any, call: Any) -> Any:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            freed.set()

    wire.servicer.answer = sleep
    before = count("Ask", "CANCELLED")
    with capture_logs() as lines:
        call = wire.ask()
        await started.wait()
        assert running("Ask") == 1
        call.cancel()
        await asyncio.wait_for(freed.wait(), 1)
        await eventually(lambda: count("Ask", "CANCELLED") == before + 1)
    assert not [line for line in lines if line["log_level"] != "info"]
    assert running("Ask") == 0
    assert wire.gate.running == 0


@pytest.mark.parametrize("where", ["between events", "while sending"])
async def test_a_stream_is_closed_when_its_client_vanishes(wire: Wire, where: str) -> None:
    begun, closed = asyncio.Event(), asyncio.Event()

    async def flood(request: Any, call: Any) -> AsyncIterator[Any]:
        try:
            while True:
                begun.set()
                yield agents_pb.RunAgentResponse(sequence=1)
                await asyncio.sleep(60 if where == "between events" else 0)
        finally:
            # Closing takes a while, as freeing a sequence does, and must still be finished.
            await asyncio.sleep(0.01)
            closed.set()

    wire.servicer.answers = flood
    before = count("Tell", "CANCELLED")
    call = wire.tell()
    await begun.wait()
    # Nobody reads: the flood runs into flow control and waits within the write.
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait_for(closed.wait(), 1)
    await eventually(lambda: count("Tell", "CANCELLED") == before + 1)
    assert running("Tell") == 0
    assert wire.gate.running == 0


async def test_a_channel_that_closes_ends_its_streams(wire: Wire) -> None:
    closed = asyncio.Event()

    async def hold(request: Any, call: Any) -> AsyncIterator[Any]:
        try:
            yield agents_pb.RunAgentResponse(sequence=1)
            await asyncio.sleep(60)
        finally:
            closed.set()

    wire.servicer.answers = hold
    call = wire.tell()
    await call.read()
    await wire.channel.close(grace=None)
    await asyncio.wait_for(closed.wait(), 1)


async def test_calls_need_a_key(wire: Wire) -> None:
    for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "a-key-for-tests"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.ask(metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert info(caught.value).reason == "INVALID_CREDENTIALS"
        events, error = await collect(wire.tell(metadata=metadata))
        assert error is not None
        assert (len(events), error.code()) == (1, grpc.StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize("request_bytes", [b"\x0a\x02\xff\xfe", b"\x0a\xff", b"\xff"])
async def test_bytes_that_are_no_message_are_the_callers_fault(wire: Wire, request_bytes: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask(request_bytes)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info(caught.value).reason == "MALFORMED_MESSAGE"
    _, error = await collect(wire.tell(request_bytes))
    assert error is not None
    assert info(error).reason == "MALFORMED_MESSAGE"


async def test_a_watch_ends_when_the_server_drains_and_is_not_waited_for(wire: Wire) -> None:
    closed = asyncio.Event()

    async def forever(request: Any, call: Any) -> AsyncIterator[Any]:
        try:
            await asyncio.sleep(60)
            yield None
        finally:
            closed.set()

    wire.servicer.changes = forever
    call = wire.watch()
    await eventually(lambda: running("Watch") == 1)
    assert wire.gate.running == 0
    wire.gate.drain()
    _, error = await collect(call)
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    found = details(error)
    assert found[error_details_pb2.ErrorInfo].reason == "DRAINING"
    assert error_details_pb2.RetryInfo in found
    assert closed.is_set()


async def test_a_running_call_outlives_the_drain(wire: Wire) -> None:
    go = asyncio.Event()

    async def answers(request: Any, call: Any) -> AsyncIterator[Any]:
        yield agents_pb.RunAgentResponse(sequence=1)
        await go.wait()
        yield agents_pb.RunAgentResponse(sequence=2)

    wire.servicer.answers = answers
    call = aiter(wire.tell())
    assert (await anext(call)).sequence == 1
    wire.gate.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask()
    assert info(caught.value).reason == "DRAINING"
    assert not await wire.gate.wait_idle(0.01)
    go.set()
    events, error = await collect(call)
    assert ([event.sequence for event in events], error) == ([2], None)
    assert await wire.gate.wait_idle(1)


async def test_a_call_that_is_cut_off_learns_why(wire: Wire) -> None:
    async def sleep(request: Any, call: Any) -> Any:
        await asyncio.sleep(60)

    wire.servicer.answer = sleep
    call = wire.ask(timeout=30)
    await eventually(lambda: wire.gate.running == 1)
    wire.gate.drain()
    wire.gate.cut_off()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info(caught.value).reason == "DRAINING"


async def test_calls_leave_nothing_behind_in_each_others_context(wire: Wire) -> None:
    seen: list[Mapping[str, Any]] = []

    async def look(request: Any, call: Any) -> Any:
        seen.append(dict(structlog.contextvars.get_contextvars()))
        structlog.contextvars.bind_contextvars(left="behind")
        return agents_pb.RunAgentResponse()

    wire.servicer.answer = look
    for number in range(3):
        await wire.ask(metadata=(*wire.metadata, ("x-request-id", f"id-{number}")))
    assert seen == [{"request_id": f"id-{number}"} for number in range(3)]
    assert "request_id" not in structlog.contextvars.get_contextvars()


async def test_a_long_message_still_fits_the_trailers(wire: Wire) -> None:
    wire.servicer.answer = raising(
        ArgosyError(Reason.INVALID_GRAMMAR, "語" * 5000 + "\ud800", field="spec.grammar", detail="語" * 5000)
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.ask()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info(caught.value).reason == "INVALID_GRAMMAR"
    size = sum(len(key) + len(value) for key, value in caught.value.trailing_metadata() or ())
    assert size + len(str(caught.value.details())) * 9 < 8192


async def test_one_line_is_logged_for_each_call(wire: Wire) -> None:
    with capture_logs() as lines:
        await wire.ask(metadata=(*wire.metadata, ("x-request-id", "abc-5")))
        with contextlib.suppress(grpc.aio.AioRpcError):
            await wire.ask(metadata=())
    first, second = lines
    assert first.pop("ms") >= 0
    assert first == {
        "event": "rpc",
        "log_level": "info",
        "service": ScriptedServicer.SERVICE,
        "method": "Ask",
        "code": "OK",
        "reason": "",
        "request_id": "abc-5",
    }
    assert (second["code"], second["reason"]) == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")


async def test_the_method_learns_whose_key_it_was(wire: Wire) -> None:
    seen = []

    async def look(request: Any, call: Any) -> Any:
        seen.append(call.tenant)
        return embeddings_pb.EmbedResponse()

    async def look_and_tell(request: Any, call: Any) -> AsyncIterator[Any]:
        seen.append(call.tenant)
        yield agents_pb.RunAgentResponse(sequence=1)

    wire.servicer.answer, wire.servicer.answers = look, look_and_tell
    await wire.ask()
    await collect(wire.tell())
    assert seen[0] == seen[1] != ""
