"""The caller's trace goes along where the caller has one, and OpenTelemetry is never asked for."""

from __future__ import annotations

import subprocess
import sys

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from argosy._metadata import make_metadata


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
