"""Settings of adapters and of where they are noted; see `settings.py`, which they are part of."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, field_validator

# Settings that a fleet on Ray takes over while it runs: changing them restarts nothing.
LIVE: dict[str, JsonValue] = {"live": True}


class Section(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterSettings(Section):
    """Where adapters may come from."""

    roots: tuple[Path, ...] = Field(
        default=(),
        description="Directories below which file:// sources are accepted; the data directory's adapters/ always is.",
        json_schema_extra=LIVE,
    )
    remotes: tuple[str, ...] = Field(
        default=(),
        description="Places on hubs and in object stores below which sources are accepted, such as "
        "hf://my-organisation/ or s3://bucket/adapters/; fsspec reaches them with the credentials of the server.",
        json_schema_extra=LIVE,
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Where the files of loaded adapters are kept; unset takes adapter-cache in the data directory.",
    )
    max_size_bytes: int = Field(
        default=1 << 30, ge=1, description="Largest adapter directory that is accepted.", json_schema_extra=LIVE
    )

    @field_validator("remotes")
    @classmethod
    def _refuse_what_is_not_remote(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        for place in places:
            if not re.fullmatch(r"(?!file:|local:)[a-z][a-z0-9+.-]*://[^:?#\s]+", place):
                raise ValueError(
                    f"adapters.remotes holds {place}: write scheme://place/, and roots for local directories"
                )
        return places


class DatabaseSettings(Section):
    """What must outlive a process: which adapters there are, and under which aliases."""

    dsn: SecretStr = Field(
        default=SecretStr(""),
        description="postgresql://user:password@host/name, for several servers that shall agree, or "
        "sqlite:////absolute/file; empty takes argosy.db in the data directory.",
    )

    @field_validator("dsn")
    @classmethod
    def _refuse_other_databases(cls, dsn: SecretStr) -> SecretStr:
        if dsn.get_secret_value() and not re.match(r"postgres(ql)?(\+psycopg)?://|sqlite:////", dsn.get_secret_value()):
            raise ValueError("database.dsn is neither postgresql://user@host/name nor sqlite:////absolute/file")
        return dsn
