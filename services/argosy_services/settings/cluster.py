"""The fleet on Ray Serve."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from argosy_services.settings.section import Section


class Replicas(Section):
    """Between how many replicas a deployment scales."""

    min: int = Field(default=1, ge=0, description="Fewest replicas; 0 lets it scale to zero.")
    max: int = Field(default=1, ge=1, description="Most replicas.")
    cpus: float = Field(default=0.1, ge=0, description="Cores that Ray reserves for each.")
    gpus: float = Field(default=0, ge=0, description="GPUs that Ray reserves for each.")

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class ClusterSettings(Section):
    """The fleet on Ray Serve."""

    profile: Literal["small", "production"] = Field(
        default="small",
        description="small: Ray Serve's proxy, simplest; production: HAProxy in front of replicas that take calls.",
    )
    http_port: int = Field(default=8000, ge=1, le=65535, description="Port of Ray Serve's own HTTP health page.")
    dashboard_port: int = Field(default=8265, ge=1, le=65535, description="Port of Ray's dashboard and REST interface.")
    haproxy_stats_port: int = Field(
        default=8404, ge=1, le=65535, description="Port of HAProxy's own page, on every address, in production."
    )
    haproxy_metrics_port: int = Field(
        default=9101, ge=1, le=65535, description="Port of HAProxy's metrics, on every address, in production."
    )
    drain_seconds: float = Field(
        default=600.0, ge=0, le=86_400, description="How long a replica that stops lets its calls finish."
    )
    upscale_seconds: float = Field(default=10.0, ge=0, description="How long there must be too few replicas.")
    downscale_seconds: float = Field(default=120.0, ge=0, description="How long there must be too many replicas.")
    tokenization: Replicas = Replicas(max=2)
    generation: Replicas = Field(default=Replicas(max=2), description="The gateways, which hold no model.")
    engine: Replicas = Field(default=Replicas(max=2, cpus=1), description="The engines behind the gateways.")
    embeddings: Replicas = Replicas(max=2, cpus=0.2)
    agents: Replicas = Replicas(max=2)
    engine_waiting_tokens: int = Field(
        default=2_048, ge=1, description="Prompt tokens that may wait for an engine before another one is started."
    )
    engine_kv_use: float = Field(
        default=0.8, gt=0, le=1, description="Share of an engine's cache in use before another one is started."
    )
    engine_gpus: int = Field(
        default=0,
        ge=0,
        description="GPUs that one engine spans, each in a bundle of its placement group; 0 takes none.",
    )
