"""The caller's trace, where the caller uses OpenTelemetry. This package does not need it, and imports it only for a
client that was asked to make spans.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from opentelemetry.context import Context

Pairs: TypeAlias = tuple[tuple[str, str], ...]


def trace_context(context: Context | None = None) -> Pairs:
    """Metadata that makes a call part of the span that is current (W3C Trace Context); none without a span."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context)
    return tuple(carrier.items())


class CallSpan:
    """The span of one call, over all its attempts."""

    def __init__(self, method: str, request_id: str) -> None:
        """`method` as in `package.Service/Method`. It becomes a child of the span that is current."""
        from opentelemetry import trace

        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "argosy.request_id": request_id}
        tracer = trace.get_tracer("argosy")
        self._span = tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=attributes)
        self._context = trace.set_span_in_context(self._span)

    def metadata(self) -> Pairs:
        """What makes an attempt part of it."""
        return trace_context(self._context)

    def end(self, problem: str) -> None:
        """Ends it, with the name of what went wrong, if anything did. Only the first time counts."""
        from opentelemetry.trace import StatusCode

        if problem and self._span.is_recording():
            self._span.set_attribute("error.type", problem)
            self._span.set_status(StatusCode.ERROR, problem)
        if self._span.is_recording():
            self._span.end()


def check_available() -> None:
    """Raises ValueError where spans are asked for and cannot be made."""
    try:
        import opentelemetry.trace  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("trace=True needs OpenTelemetry: pip install opentelemetry-api") from None
