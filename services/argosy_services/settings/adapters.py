"""Adapters."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from argosy_services.settings.section import LIVE, Section


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
