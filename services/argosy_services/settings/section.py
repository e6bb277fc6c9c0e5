"""What all parts of the settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue

# Settings that a fleet on Ray takes over while it runs: changing them restarts nothing.
LIVE: dict[str, JsonValue] = {"live": True}


class Section(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def live_fields(section: type[BaseModel]) -> set[str]:
    """Names of the settings that a fleet on Ray takes over while it runs."""
    return {name for name, field in section.model_fields.items() if field.json_schema_extra == LIVE}
