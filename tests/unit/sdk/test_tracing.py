"""The caller's trace goes along where the caller has one, and OpenTelemetry is never asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, use_span
from tests.unit.sdk.conftest import QUICK
from tests.unit.sdk.scripted import Failure, ScriptedServer

import argosy
from argosy._metadata import make_metadata

FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=0.01)


def metadata() -> dict[str, str]:
    return dict(make_metadata("generation", request_id="id", timeout=None, api_key=None))


def test_the_current_span_goes_along() -> None:
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with use_span(NonRecordingSpan(context)):
        assert metadata()["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert "traceparent" not in metadata()


def test_opentelemetry_is_not_imported() -> None:
    code = """
import sys, argosy
from argosy._metadata import make_metadata
assert dict(make_metadata("a", request_id="id", timeout=1, api_key=None)).keys() >= {"x-request-id"}
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What a program that uses OpenTelemetry has set up."""
    made, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    # It can be set once in a process.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield made
    provider.shutdown()


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def test_a_call_has_one_span_over_its_attempts(server: ScriptedServer, exporter: InMemorySpanExporter) -> None:
    server.failures["Generate"] = [FULL]
    with argosy.Client(server.address, retry=QUICK, trace=True) as client:
        client.generation.generate("x", request_id="mine")
    span = only(exporter)
    assert (span.name, span.kind) == ("argosy.api.generation.v1.GenerationService/Generate", SpanKind.CLIENT)
    assert span.attributes is not None
    assert span.attributes["argosy.request_id"] == "mine"
    sent = [call.metadata["traceparent"][:-2] for call in server.calls_of("Generate")]
    assert sent == [f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"] * 2
    assert span.status.is_unset


async def test_failed_calls_and_streams_have_theirs(server: ScriptedServer, exporter: InMemorySpanExporter) -> None:
    server.failures["Generate"] = [FULL] * 3
    async with argosy.AsyncClient(server.address, retry=QUICK, trace=True) as client:
        with pytest.raises(argosy.QueueFullError):
            await client.generation.generate("x")
        assert only(exporter).attributes["error.type"] == "QUEUE_FULL"  # type: ignore[index]
        exporter.clear()
        await client.generation.stream("x").result()
        assert only(exporter).name.endswith("/StreamGenerate")
        exporter.clear()
        async with client.generation.stream("x"):
            assert not exporter.get_finished_spans()
        assert only(exporter).status.is_unset


def test_clients_make_no_spans_unless_asked(server: ScriptedServer, exporter: InMemorySpanExporter) -> None:
    with argosy.Client(server.address, retry=QUICK) as client:
        client.generation.generate("x")
    assert not exporter.get_finished_spans()
    assert "traceparent" not in server.calls_of("Generate")[0].metadata


def test_asking_for_spans_without_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(ValueError, match="pip install opentelemetry-api"):
        argosy.Client("127.0.0.1:1", trace=True)
