"""All settings together: what a server or a fleet is told."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from argosy_services.settings.adapters import AdapterSettings
from argosy_services.settings.agents import AgentSettings
from argosy_services.settings.cluster import ClusterSettings
from argosy_services.settings.database import DatabaseSettings
from argosy_services.settings.embeddings import EmbeddingSettings
from argosy_services.settings.generation import GenerationSettings
from argosy_services.settings.observability import MetricsSettings, TracingSettings
from argosy_services.settings.section import LIVE

_DATA_DIR = "~/.local/share/argosy"


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
        default="info", description="Lowest level that is logged.", json_schema_extra=LIVE
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


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
