"""Every setting of the servers: from keyword arguments, the environment (ARGOSY_*), a YAML file and defaults, in turn.

Nested settings use two underscores: `ARGOSY_GENERATION__DTYPE=bfloat16`. The file is the one that ARGOSY_CONFIG names.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from argosy_services.settings_of_adapters import LIVE as _LIVE
from argosy_services.settings_of_adapters import AdapterSettings, DatabaseSettings
from argosy_services.settings_of_adapters import Section as _Section

_DATA_DIR = "~/.local/share/argosy"


class TensorRtLlmSettings(_Section):
    """TensorRT-LLM on NVIDIA GPUs; used where generation.engine is tensorrt_llm. See docs/tensorrt-llm.md."""

    mode: Literal["compiled", "pytorch"] = Field(
        default="pytorch",
        description="compiled runs an engine that `argosy compile` made, pytorch the checkpoint itself.",
    )
    engine_dir: Path | None = Field(
        default=None,
        description="A compiled engine, or a directory with several below it, of which the one that fits is taken.",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="GPUs that share the model.")
    quantization: Literal["none", "fp8"] = Field(
        default="none", description="What the compiled engine must have been quantized to."
    )
    kv_cache_fraction: float = Field(
        default=0.85, gt=0, lt=1, description="Part of the GPU's free memory that the key-value cache takes."
    )
    max_batch_tokens: int = Field(default=8192, ge=64, description="Most tokens that one step computes.")
    sampler: Literal["auto", "TorchSampler", "TRTLLMSampler"] = Field(
        default="auto", description="The library's sampler in pytorch mode."
    )
    max_adapter_versions: int = Field(
        default=256, ge=1, description="Most different adapters until a restart: the library keeps the memory of each."
    )
    max_restarts: int = Field(default=3, ge=0, le=100, description="Most attempts to start the library again.")
    restart_delay_s: float = Field(
        default=1.0, ge=0, le=60, description="Before the first such attempt; each further one waits twice as long."
    )


class GenerationSettings(_Section):
    """The generation model and its engine."""

    model: str = Field(default="smollm2-135m-instruct", description="Name in the model store, or a source URI.")
    engine: Literal["torch", "tensorrt_llm"] = Field(
        default="torch", description="What runs the model; tensorrt_llm needs the extra `trtllm` and an NVIDIA GPU."
    )
    tensorrt_llm: TensorRtLlmSettings = TensorRtLlmSettings()
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of weights and cache; auto takes bfloat16 where the device computes with it natively.",
    )
    quantization: Literal["auto", "none", "int8", "int4", "fp8"] = Field(
        default="auto",
        description="Format of the torch engine's weights; auto takes int8 where the processor computes with it and "
        "dtype is auto, and costs less than 1 % of perplexity; int4 halves the memory and costs more; fp8 is for "
        "NVIDIA GPUs from Ada and Hopper on.",
    )
    kernels: Literal["auto", "torch"] = Field(
        default="auto",
        description="auto runs native kernels where the model and the processor fit them, and Triton's on a GPU; torch "
        "its operators only.",
    )
    device: str = Field(default="cpu", description="Torch device.")
    threads: int = Field(default=0, ge=0, le=1024, description="Threads of a step; 0 takes one per core.")
    kv_cache_tokens: int = Field(
        default=65_536, ge=256, description="Tokens that the key-value cache holds, over all sequences."
    )
    block_tokens: int = Field(default=16, ge=1, le=256, description="Tokens in one block of the cache.")
    prefix_cache: bool = Field(
        default=True,
        description="Share computed beginnings of prompts, among the calls of one API key.",
    )
    max_batch: int = Field(default=64, ge=1, le=4096, description="Most sequences in one step.")
    max_step_tokens: int = Field(default=512, ge=16, description="Most tokens that one step computes.")
    max_waiting: int = Field(
        default=256, ge=0, description="Most sequences that wait; one more is refused.", json_schema_extra=_LIVE
    )
    max_waiting_tokens: int = Field(
        default=131_072,
        ge=0,
        description="Most prompt tokens that wait; a prompt that exceeds it is refused, unless it is the only one.",
        json_schema_extra=_LIVE,
    )
    explain_requests: int = Field(
        default=1_000,
        ge=0,
        le=1_000_000,
        description="Finished requests that Explain can tell of; the latest are kept.",
    )
    stream_interval_ms: float = Field(
        default=40.0,
        ge=0,
        le=1000,
        description="Tokens of a stream that come within this time travel in one message, the first and last at once; "
        "0 sends each as it comes. A message costs more than the token in it.",
    )
    max_context_tokens: int = Field(default=0, ge=0, description="Longest sequence; 0 takes the model's own limit.")
    speculation: Literal["auto", "off", "prompt_lookup", "draft"] = Field(
        default="auto",
        description="Guess tokens ahead of the model, which changes no answer: auto where it pays; prompt_lookup from "
        "what a sequence repeats, or draft by draft_model, at any cost; off never.",
    )
    draft_model: str = Field(
        default="", description="A smaller model with the same tokenizer that guesses tokens; a name or a source URI."
    )
    max_adapters: int = Field(default=16, ge=0, le=1024, description="Most adapters in the engine at once.")
    adapter_memory_bytes: int = Field(
        default=1 << 30, ge=0, description="Most bytes of adapters that are kept in memory beside those in the engine."
    )
    max_adapter_rank: int = Field(default=64, ge=1, le=512, description="Largest LoRA rank that is accepted.")

    @model_validator(mode="after")
    def _refuse_what_cannot_load(self) -> GenerationSettings:
        library = self.tensorrt_llm
        if self.speculation == "draft" and not self.draft_model:
            raise ValueError("speculation is draft and draft_model is not set: name a model with the same tokenizer")
        if self.engine == "tensorrt_llm" and (self.draft_model or self.speculation in ("draft", "prompt_lookup")):
            raise ValueError("draft_model and speculation are for the engine torch: leave them at their defaults")
        if self.engine == "tensorrt_llm" and library.mode == "compiled" and library.engine_dir is None:
            raise ValueError(
                "tensorrt_llm.engine_dir is not set: name what `argosy compile` printed, or use mode pytorch"
            )
        if self.engine == "tensorrt_llm" and library.mode == "pytorch" and library.quantization != "none":
            raise ValueError(
                "tensorrt_llm.quantization is for mode compiled; in mode pytorch serve a checkpoint that is quantized"
            )
        return self


class EmbeddingSettings(_Section):
    """The embedding model."""

    model: str = Field(default="all-minilm-l6-v2", description="Name in the model store, or a source URI.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of weights and products; auto takes bfloat16, whose vectors have a cosine of at least 0.999 "
        "to those of float32, where the processor computes with it natively.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Batches at once, each on a core; 0 takes all cores.")
    max_batch_tokens: int = Field(
        default=1_024, ge=16, description="Most tokens in one batch.", json_schema_extra=_LIVE
    )
    max_waiting_texts: int = Field(
        default=16_384, ge=1, description="Most texts that wait; more are refused.", json_schema_extra=_LIVE
    )


class McpServerSettings(_Section):
    """A server of the Model Context Protocol whose tools agents may use: a program, or an address."""

    command: tuple[str, ...] = Field(default=(), description="Program and arguments, spoken to by stdio.")
    env: dict[str, SecretStr] = Field(default={}, description="Its environment; values enter no prompt.")
    url: str = Field(default="", description="Address of a server that speaks streamable HTTP.")
    headers: dict[str, SecretStr] = Field(default={}, description="Sent along; values enter no prompt.")
    approval: Literal["never", "writes", "always"] = Field(
        default="writes",
        description="Which calls wait for a person; writes are those of tools that do not declare to only read.",
    )
    timeout_s: float = Field(default=30.0, gt=0, le=600, description="Longest call.")

    @model_validator(mode="after")
    def _one_transport(self) -> McpServerSettings:
        if bool(self.command) == bool(self.url):
            raise ValueError("a server of agents.mcp has either a command or a url")
        return self


class AgentSettings(_Section):
    """Bounds of agent runs, and the tools that are off unless they are asked for."""

    http_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that the tool http_get may fetch from, such as *.example.org; none turns it off."
    )
    python: bool = Field(
        default=False, description="Offer the tool python, which runs code in a sandbox; refused where there is none."
    )
    delegate: bool = Field(default=False, description="Offer the tool delegate, which starts sub-agents.")
    mcp: dict[str, McpServerSettings] = Field(
        default={}, description="MCP servers by name; theirs stands before tools'."
    )

    max_running: int = Field(
        default=32, ge=1, description="Most runs at once; one more is refused.", json_schema_extra=_LIVE
    )
    keep_runs: int = Field(
        default=10_000, ge=1, description="Finished runs of one API key that are kept; older ones are deleted."
    )
    wait_seconds: float = Field(
        default=86_400.0, gt=0, description="How long a run waits for an approval, or for a result of its caller's."
    )


class Replicas(_Section):
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


class ClusterSettings(_Section):
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


class TracingSettings(_Section):
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


class MetricsSettings(_Section):
    """What the metrics show; see docs/metrics.md."""

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


class Settings(BaseSettings):
    """Everything that `argosy serve` and `argosy up` can be told."""

    model_config = SettingsConfigDict(
        env_prefix="ARGOSY_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        # An error's text would quote API keys.
        hide_input_in_errors=True,
    )

    host: str = Field(default="127.0.0.1", description="Address of the gRPC port.")
    port: int = Field(default=50051, ge=0, le=65535, description="gRPC port; 0 takes a free one.")
    metrics_host: str = Field(default="127.0.0.1", description="Address of the Prometheus port.")
    metrics_port: int = Field(default=50052, ge=0, le=65535, description="Prometheus port; 0 takes a free one.")
    data_dir: Path = Field(default=Path(_DATA_DIR), description="Where models and adapters are kept.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Keys of which calls must carry one, separated by commas in the environment; none admits all.",
    )
    priority_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="Those of api_keys whose calls may go before others: may ask for a priority above 0.",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file; with tls_key, the gRPC port speaks TLS only."
    )
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's private key.")
    insecure: bool = Field(default=False, description="Allow a non-loopback address without API keys.")
    drain_seconds: float = Field(
        default=30.0, ge=0, le=3600, description="How long running calls may finish on SIGTERM."
    )
    max_message_bytes: int = Field(
        default=16 << 20, ge=1 << 16, le=1 << 30, description="Largest gRPC message, both ways."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged.", json_schema_extra=_LIVE
    )
    log_format: Literal["json", "console"] = Field(default="json", description="Form of log lines on standard error.")
    generation: GenerationSettings = GenerationSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    adapters: AdapterSettings = AdapterSettings()
    database: DatabaseSettings = DatabaseSettings()
    agents: AgentSettings = AgentSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracing: TracingSettings = TracingSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def models_dir(self) -> Path:
        """Root of the model store."""
        return self.data_dir / "models"

    @property
    def database_dsn(self) -> str:
        """Where the SQL store is."""
        return self.database.dsn.get_secret_value() or f"sqlite:///{self.data_dir / 'argosy.db'}"

    @property
    def adapter_roots(self) -> tuple[Path, ...]:
        """Directories below which `file://` adapter sources are accepted."""
        return (self.data_dir / "adapters", *self.adapters.roots)

    @property
    def run_dir(self) -> Path:
        """What is known of a fleet on Ray while it runs. Several may share a data directory."""
        return self.data_dir / "run" / str(self.cluster.dashboard_port)

    @property
    def metrics_targets(self) -> Path:
        """The directory of a cluster's metrics addresses, in the form of Prometheus's file_sd."""
        return self.run_dir / "metrics"

    @model_validator(mode="before")
    @classmethod
    def _expand_home(cls, values: dict[str, object]) -> dict[str, object]:
        data_dir = values.get("data_dir", default_data_dir())
        return {**values, "data_dir": Path(str(data_dir)).expanduser().absolute()}

    @field_validator("api_keys", "priority_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        return [key.strip() for key in value.split(",") if key.strip()] if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _refuse_weak_keys(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(re.fullmatch(r"[!-~]{8,}", key.get_secret_value()) for key in keys):
            raise ValueError("an API key has at least 8 characters, all of them visible ASCII; make a longer one")
        return keys

    @model_validator(mode="after")
    def _refuse_unknown_priority_keys(self) -> Settings:
        if not set(self.priority_keys) <= set(self.api_keys):
            raise ValueError("priority_keys holds a key that is not one of api_keys; add it there or remove it here")
        return self

    @model_validator(mode="after")
    def _refuse_open_door(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together")
        if not (self.api_keys or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} is reachable from other machines and no API key is set: set ARGOSY_API_KEYS, "
                "or ARGOSY_INSECURE=true where the network itself is trusted"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds the file that ARGOSY_CONFIG names below the environment."""
        config = os.environ.get("ARGOSY_CONFIG")
        if not config:
            return (init_settings, env_settings)
        if not Path(config).is_file():
            raise ValueError(f"ARGOSY_CONFIG names {config}, which is no file: correct the path or unset the variable")
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=config))

    def redacted(self) -> dict[str, object]:
        """The settings as plain values with every secret masked, for logs."""
        return self.model_dump(mode="json")


def default_data_dir() -> Path:
    """Where models and adapters are kept unless told otherwise."""
    return Path(_DATA_DIR).expanduser()


def live_fields(section: type[BaseModel]) -> set[str]:
    """Names of the settings that a fleet on Ray takes over while it runs."""
    return {name for name, field in section.model_fields.items() if field.json_schema_extra == _LIVE}


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
