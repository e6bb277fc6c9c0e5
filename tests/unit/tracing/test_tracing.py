"""Spans of calls, stages and logs, as a collector gets them; and that nothing happens where tracing is off."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import grpc
import pydantic
import pytest
import structlog

from argosy.api.embeddings.v1 import embeddings_service_pb2 as pb
from argosy.api.embeddings.v1 import embeddings_service_pb2_grpc as stubs
from argosy_services import logs, tracing
from argosy_services.embedded import EmbeddedServer
from argosy_services.engine.base import Finish, Request, StepOutput, Timings
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.progress import Meters, Progress
from argosy_services.rpc.endpoint import unary
from argosy_services.settings import Settings, TracingSettings
from argosy_services.testing import Collector, ReceivedSpan, run_test_collector

EMBED = "argosy.api.embeddings.v1.EmbeddingsService/Embed"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Fleet:
    """One method, which fails or logs as the model's name says."""

    SERVICE = "argosy.api.embeddings.v1.EmbeddingsService"
    healthy = True

    def register(self, server, gate, auth) -> None:
        self.gate, self.auth = gate, auth
        handler = grpc.unary_unary_rpc_method_handler(
            self.Embed, pb.EmbedRequest.FromString, pb.EmbedResponse.SerializeToString
        )
        server.add_registered_method_handlers(self.SERVICE, {"Embed": handler})

    @unary(pb.EmbedResponse)
    async def Embed(self, request, call) -> pb.EmbedResponse:
        if request.model == "invalid":
            raise ArgosyError(Reason.INVALID_FIELD, "field is 'a secret'", field="model", value="a secret")
        if request.model == "broken":
            raise ValueError("a secret")
        if request.model == "slow":
            await asyncio.sleep(60)
        with tracing.span("work"):
            structlog.get_logger("argosy.test").warning("inside")
        return pb.EmbedResponse(model=request.model)

    async def start(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    with run_test_collector() as running:
        yield running


async def call(endpoint: str, model: str = "", *, metadata=(), ratio: float = 1.0, timeout: float = 20) -> str:
    """The code of one call to a server that sends its spans to `endpoint`; all are sent when it returns."""
    settings = Settings(port=0, metrics_port=0, tracing=TracingSettings(endpoint=endpoint, sample_ratio=ratio))
    server = EmbeddedServer(settings, lambda _: Fleet())
    await server.open()
    try:
        await server.load()
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = stubs.EmbeddingsServiceStub(channel)
            try:
                await stub.Embed(pb.EmbedRequest(model=model), metadata=metadata, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"
    finally:
        await server.close(drain_seconds=1)


def only(collector: Collector, name: str = EMBED) -> ReceivedSpan:
    (span,) = [span for span in collector.spans if span.name == name]
    return span


async def test_a_call_is_part_of_its_callers_trace(collector: Collector) -> None:
    metadata = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "mine")]
    assert await call(collector.endpoint, metadata=metadata) == "OK"
    span, work = only(collector), only(collector, "work")
    assert (span.trace_id, span.parent_id, work.parent_id) == (TRACE, PARENT, span.span_id)
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": EMBED,
        "rpc.response.status_code": "OK",
        "argosy.request_id": "mine",
    }
    assert span.start <= work.start <= work.end <= span.end
    assert abs(span.end - time.time()) < 60


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{'0' * 32}-{PARENT}-01",
        f"ff-{TRACE}-{PARENT}-01",
        "00-" + "z" * 4000,
    ],
)
async def test_a_header_that_is_no_trace_context_begins_a_trace(collector: Collector, header: str) -> None:
    assert await call(collector.endpoint, metadata=[("traceparent", header)]) == "OK"
    assert only(collector).parent_id == ""
    assert only(collector).trace_id != TRACE


async def test_calls_that_are_not_sampled_leave_nothing(collector: Collector) -> None:
    assert await call(collector.endpoint, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-00")]) == "OK"
    assert await call(collector.endpoint, ratio=0) == "OK"
    assert collector.spans == []


@pytest.mark.parametrize(
    ("model", "code", "kind", "failed"),
    [
        ("invalid", "INVALID_ARGUMENT", "INVALID_FIELD", False),
        ("broken", "INTERNAL", "INTERNAL", True),
        ("slow", "DEADLINE_EXCEEDED", None, None),
    ],
)
async def test_failures_are_statuses_and_tell_nothing_of_the_request(
    collector: Collector, model: str, code: str, kind: str | None, failed: bool | None
) -> None:
    assert await call(collector.endpoint, model, timeout=0.5 if model == "slow" else 20) == code
    span = only(collector)
    assert span.attributes["rpc.response.status_code"] == code
    if kind is not None:
        assert (span.attributes["error.type"], span.failed) == (kind, failed)
    assert "secret" not in str(span)


async def test_a_collector_that_is_away_costs_no_call_and_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    started = time.monotonic()
    try:
        assert await call("http://127.0.0.1:9") == "OK"
    finally:
        structlog.reset_defaults()
    # Draining, flushing and the attempts of the exporter, all bounded.
    assert time.monotonic() - started < 10
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [line for line in lines if "traces" in line["event"] or "opentelemetry" in line.get("logger", "")]
    assert len(told) <= 1, told
    inside = next(line for line in lines if line["event"] == "inside")
    finished = next(line for line in lines if line["event"] == "rpc")
    assert len(inside["trace_id"]) == 32
    assert inside["trace_id"] == finished["trace_id"]
    assert inside["span_id"] != finished["span_id"]


def test_failed_exports_are_told_of_once_and_their_end_too(capsys: pytest.CaptureFixture[str]) -> None:
    results = iter(["FAILURE", "FAILURE", "SUCCESS", "SUCCESS", "FAILURE"])
    exporter = SimpleNamespace(export=lambda spans: SimpleNamespace(name=next(results)))
    delivery = tracing._Delivery(exporter, "http://collector:4317")  # type: ignore[arg-type]
    logs.configure("info", "json")
    try:
        for _ in range(5):
            delivery.export([])
    finally:
        structlog.reset_defaults()
    levels = [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()]
    assert levels == ["warning", "info", "warning"]


async def test_stages_of_a_sequence_are_laid_between_what_was_seen(collector: Collector) -> None:
    running = tracing.start(TracingSettings(endpoint=collector.endpoint), version="test")
    assert running is not None
    now = time.monotonic() - 10
    progress = Progress(Request("one", prompt=(1, 2, 3), max_tokens=4), Meters("test"), now)
    timings = Timings(queue_s=2, prefill_s=3, decode_s=0, grammar_s=0.5, preempted_s=(4, 7))
    progress.see(StepOutput("one", token_ids=(5,), cached_tokens=2, timings=timings), now + 6)
    progress.see(StepOutput("one", token_ids=(6, 7), finish=Finish.LENGTH), now + 9)
    tracing.open_call("test", "Run", {}, "id")
    trace = tracing.here()
    assert trace is not None
    progress.record(trace)
    await asyncio.to_thread(running.stop, 5.0)
    spans = {span.name: span for span in collector.spans}
    begin = spans["queue"].start
    times = {name: (span.start - begin, span.end - begin) for name, span in spans.items()}
    assert times["queue"] == pytest.approx((0, 3), abs=0.01)
    assert times["compile grammar"] == pytest.approx((1, 1.5), abs=0.01)
    assert times["prefill"] == pytest.approx((3, 6), abs=0.01)
    assert times["decode"] == pytest.approx((6, 9), abs=0.01)
    assert (spans["prefill"].events, spans["decode"].events) == (("preempted",), ("preempted",))
    assert spans["prefill"].attributes == {"argosy.prompt_tokens": 3, "argosy.cached_tokens": 2}
    assert spans["decode"].attributes == {"argosy.completion_tokens": 3}


async def test_spans_end_as_their_blocks_do(collector: Collector) -> None:
    running = tracing.start(TracingSettings(endpoint=collector.endpoint), version="test")
    assert running is not None
    tracing.open_call("test", "Run", {}, "id")
    with pytest.raises(ArgosyError), tracing.span("refused"):
        raise ArgosyError(Reason.QUEUE_FULL, "full")
    with pytest.raises(asyncio.CancelledError), tracing.span("cancelled"):
        raise asyncio.CancelledError
    with tracing.span("outer") as outer:
        carrier = tracing.outgoing()
        with tracing.span("inner"):
            pass
        outer.set({"late": 1})
    with tracing.incoming("elsewhere", carrier):
        pass
    await asyncio.to_thread(running.stop, 5.0)
    spans = {span.name: span for span in collector.spans}
    assert (spans["refused"].failed, spans["refused"].attributes) == (True, {"error.type": "QUEUE_FULL"})
    assert (spans["cancelled"].failed, spans["cancelled"].attributes) == (False, {"argosy.cancelled": True})
    assert spans["inner"].parent_id == spans["elsewhere"].parent_id == spans["outer"].span_id
    assert spans["outer"].attributes == {"late": 1}
    assert spans["outer"].parent_id == spans["refused"].parent_id


def test_what_is_off_does_nothing_and_imports_nothing() -> None:
    code = """
import sys
import argosy_services.embedded, argosy_services.agents.work, argosy_services.generation.service
from argosy_services import tracing
from argosy_services.settings import TracingSettings
assert tracing.start(TracingSettings(), version="test") is None
span = tracing.span("anything")
assert span is tracing.span("else") is tracing.open_call("a", "B", {"traceparent": "x"}, "id")
with span as inside:
    assert tracing.here() is None and tracing.outgoing() == {} and inside is span
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "endpoint", ["collector:4317", "ftp://collector", "http://user:key@collector:4317", "http://a b"]
)
def test_endpoints_are_urls_without_credentials(endpoint: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="endpoint"):
        Settings(tracing={"endpoint": endpoint})  # type: ignore[arg-type]
