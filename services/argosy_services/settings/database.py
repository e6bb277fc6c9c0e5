"""The SQL store."""

from __future__ import annotations

import re

from pydantic import Field, SecretStr, field_validator

from argosy_services.settings.section import Section


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
