"""Traces and metrics."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from argosy_services.settings.section import Section


class TracingSettings(Section):
    """Traces for OpenTelemetry; needs the extra "tracing". See docs/tracing.md."""

    endpoint: str = Field(
        default="",
        description="Collector that takes OTLP over gRPC, such as http://127.0.0.1:4317; none turns tracing off.",
    )
    sample_ratio: float = Field(
        default=1.0, ge=0, le=1, description="Part of the traces that is kept; callers decide for those they began."
    )
    service_name: str = Field(default="argosy", min_length=1, max_length=128, description="The fleet's name in traces.")

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/@]+/?", value):
            raise ValueError("must be http://HOST:PORT, or https://HOST:PORT for TLS, without credentials")
        return value


class MetricsSettings(Section):
    """What the metrics show; see docs/metrics.md."""

    enabled: bool = Field(default=True, description="Count at all; without it the page shows the process alone.")
    vllm_names: bool = Field(
        default=False, description="Also export the names that vLLM uses, for gateways and autoscalers that go by them."
    )
    max_adapters: int = Field(
        default=100, ge=1, le=10_000, description="Adapters with series of their own; all others share one."
    )
    max_tenants: int = Field(
        default=50, ge=1, le=10_000, description="Tenants with series of their own; all others share one."
    )
    max_series: int = Field(
        default=1_000, ge=100, le=100_000, description="Series of one metric, before further ones are put together."
    )
    tenant_names: dict[str, str] = Field(
        default={}, description="Names of tenants, by the digests under which they show up without one."
    )
