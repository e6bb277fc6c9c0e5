"""Traces for OpenTelemetry: where the time of a call went, over all services that took part in it.

Off unless `tracing.endpoint` is set, and then no package of OpenTelemetry is imported and no span is made: `span` gives
one object that does nothing, `here` gives None. Nothing is done for a token in either case: an engine's stages become
spans once a sequence is over. Names and attributes follow OpenTelemetry's semantic conventions for RPCs and for
generative AI; texts, keys and messages of errors, which may quote them, are never among them. See docs/tracing.md.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import structlog

from argosy_services.errors import ArgosyError
from argosy_services.settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

log = structlog.get_logger("argosy.tracing")

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]

_EXPORT_S = 5.0
_EVERY_MS = 1_000
# What the libraries say over and over about a collector that cannot be reached, `_Delivery` says once.
_REPETITIVE = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")
# Codes for which the server is to blame; the others are the caller's doing and no errors of a server's span.
_SERVER_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

_tracer: Tracer | None = None


class NoSpan:
    """Stands for all spans that nobody wants."""

    __slots__ = ()

    def set(self, attributes: Attributes) -> None:
        """Does nothing."""

    def end_call(self, code: str, reason: str) -> None:
        """Does nothing."""

    def __enter__(self) -> NoSpan:
        return self

    def __exit__(self, *_raised: object) -> None: ...


_NO_SPAN = NoSpan()


class LiveSpan:
    """A piece of work that is being traced. As a context manager it is the current one inside, and ends with it."""

    __slots__ = ("_outer", "_span", "_tracer")

    def __init__(self, span: OtelSpan, tracer: Tracer) -> None:
        self._span = span
        self._tracer = tracer
        self._outer: Context | None = None

    def set(self, attributes: Attributes) -> None:
        """Adds what became known."""
        self._span.set_attributes(attributes)

    def stage(
        self,
        name: str,
        start: float,
        end: float,
        attributes: Attributes | None = None,
        events: Iterable[tuple[str, float]] = (),
    ) -> None:
        """Adds a child for work that is over, and what happened in it. Times are those of `time.monotonic()`."""
        from opentelemetry import trace

        to_epoch = time.time_ns() - time.monotonic_ns()
        begun = to_epoch + int(start * 1e9)
        context = trace.set_span_in_context(self._span)
        child = self._tracer.start_span(name, context, start_time=begun, attributes=attributes)
        for event, at in events:
            child.add_event(event, timestamp=to_epoch + int(at * 1e9))
        child.end(max(begun, to_epoch + int(end * 1e9)))

    def end_call(self, code: str, reason: str) -> None:
        """Ends the span of a call with its status: names of gRPC's code and of our reason, empty without one."""
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self._span.set_attribute("error.type", reason or code)
        if code in _SERVER_FAULTS:
            self._span.set_status(StatusCode.ERROR, reason or code)
        self._span.end()

    def ids(self) -> dict[str, str]:
        """Trace and span id in hexadecimal."""
        context = self._span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def __enter__(self) -> LiveSpan:
        from opentelemetry import context, trace

        self._outer = context.get_current()
        context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from opentelemetry import context
        from opentelemetry.trace import StatusCode

        if self._outer is not None:
            # Not `detach`, which asks for the context of `attach`: generators may be closed in another one.
            context.attach(self._outer)
        if isinstance(raised, asyncio.CancelledError | GeneratorExit):
            self._span.set_attribute("argosy.cancelled", True)
        elif raised is not None:
            name = raised.reason if isinstance(raised, ArgosyError) else type(raised).__name__
            self._span.set_attribute("error.type", name)
            self._span.set_status(StatusCode.ERROR, name)
        self._span.end()


Span: TypeAlias = LiveSpan | NoSpan


def here() -> LiveSpan | None:
    """The current span; None where nothing is traced."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    current = trace.get_current_span()
    return LiveSpan(current, _tracer) if current.is_recording() else None


def span(name: str, attributes: Attributes | None = None) -> Span:
    """A part of what is traced now, to be used with `with`. Where nothing is traced it does nothing."""
    if _tracer is None or here() is None:
        return _NO_SPAN
    return LiveSpan(_tracer.start_span(name, attributes=attributes), _tracer)


def open_call(service: str, method: str, metadata: Mapping[str, str], request_id: str) -> Span:
    """The span of a call that came in, for `end_call`; it becomes the current one of the call's task and stays so.

    A W3C `traceparent` in `metadata` makes it part of the caller's trace, and decides whether it is sampled.
    """
    if _tracer is None:
        return _NO_SPAN
    from opentelemetry import context, trace

    name = f"{service}/{method}"
    attributes = {"rpc.system.name": "grpc", "rpc.method": name, "argosy.request_id": request_id}
    opened = _tracer.start_span(name, _parent(metadata), trace.SpanKind.SERVER, attributes)
    context.attach(trace.set_span_in_context(opened))
    return LiveSpan(opened, _tracer) if opened.is_recording() else _NO_SPAN


def outgoing() -> dict[str, str]:
    """What lets another process of the fleet go on with the trace; empty where nothing is traced."""
    if here() is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def incoming(name: str, carrier: Mapping[str, str]) -> Span:
    """A span for what another process of the fleet asked for, with what `outgoing` gave there."""
    if _tracer is None or not carrier:
        return _NO_SPAN
    from opentelemetry.trace import SpanKind

    return LiveSpan(_tracer.start_span(name, _parent(carrier), SpanKind.SERVER), _tracer)


def log_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: adds the ids of the current span, so that a trace leads to its log lines."""
    if (current := here()) is not None:
        event.update(current.ids())
    return event


class Tracing:
    """The delivery of spans to a collector. Whoever started it stops it."""

    def __init__(self, tracer: Tracer, processor: BatchSpanProcessor, exporter: SpanExporter) -> None:
        self._tracer = tracer
        self._processor = processor
        self._exporter = exporter

    def stop(self, seconds: float) -> None:
        """Makes no more spans and sends those that wait, for at most so long. Blocks."""
        global _tracer  # noqa: PLW0603 - one for the process, as with the libraries of OpenTelemetry
        if _tracer is self._tracer:
            _tracer = None
        # The processor would wait for half a minute.
        sending = threading.Thread(target=self._processor.shutdown, name="argosy-traces", daemon=True)
        sending.start()
        sending.join(seconds)
        if sending.is_alive():
            self._exporter.shutdown()


def start(settings: TracingSettings, *, version: str) -> Tracing | None:
    """Turns tracing on for this process, if the settings say so; None where they do not.

    Raises ModuleNotFoundError where the extra "tracing" is not installed. A collector that cannot be reached is no
    error: spans that find no room while they wait for it are dropped.
    """
    global _tracer  # noqa: PLW0603
    if not settings.endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    for name in _REPETITIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    resource = Resource.create(
        {
            "service.name": settings.service_name,
            "service.version": version,
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    insecure = settings.endpoint.startswith("http://")
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, insecure=insecure, timeout=_EXPORT_S)
    delivery: Any = _Delivery(exporter, settings.endpoint)
    processor = BatchSpanProcessor(delivery, schedule_delay_millis=_EVERY_MS)
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)), resource=resource, shutdown_on_exit=False
    )
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("argosy", version)
    return Tracing(_tracer, processor, exporter)


class _Delivery:
    """An exporter that says once when its spans do not arrive, and once when they do again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans. Runs on the thread of the processor."""
        result = self._exporter.export(spans)
        failed = result.name == "FAILURE"
        if failed and not self._failing:
            log.warning("traces do not arrive and are dropped; calls go on", endpoint=self._endpoint)
        elif self._failing and not failed:
            log.info("traces arrive again", endpoint=self._endpoint)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Gives up what is not sent."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits here: the processor has the queue."""
        return True


def _parent(carrier: Mapping[str, str]) -> Context:
    """The trace context in metadata, checked by the library; what is no such context is as if it were not there."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier, Context())
