"""The tables of each area, by version: steps that are taken once and in order (docs/adr/0014)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from argosy_services.storage.database import Database

_VERSIONS = """
CREATE TABLE IF NOT EXISTS argosy_schema (
  area TEXT NOT NULL, version INTEGER NOT NULL, applied TEXT NOT NULL, PRIMARY KEY (area, version)
)"""
_TYPES = {
    "sqlite": {"bytes": "BLOB", "id": "INTEGER PRIMARY KEY AUTOINCREMENT"},
    "postgresql": {"bytes": "BYTEA", "id": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"},
}


class SchemaTooNewError(RuntimeError):
    """The database was made by a later version of Argosy; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of an area. Each of `steps` holds SQL statements, separated by semicolons, that lead from one version
    to the next; a released step is never changed. `{bytes}` stands for the type of byte strings, `{id}` for a primary
    key that numbers itself.
    """

    area: str
    steps: Sequence[str]


def migrate(database: Database, schema: Schema) -> None:
    """Takes the steps that are missing. Several processes may do so at once. Blocks.

    Raises SchemaTooNewError and STORE_UNAVAILABLE.
    """
    database.alone(lambda connection: _migrate(connection, schema))


def _migrate(connection: Connection, schema: Schema) -> None:
    dialect = connection.dialect.name
    connection.execute(text(_VERSIONS))
    done = connection.execute(
        text("SELECT COALESCE(MAX(version), 0) FROM argosy_schema WHERE area = :area"), {"area": schema.area}
    ).scalar_one()
    if done > len(schema.steps):
        raise SchemaTooNewError(
            f"the tables of '{schema.area}' have version {done}, this Argosy knows {len(schema.steps)}: run the later "
            "version that made them, or name another database"
        )
    for version, step in enumerate(schema.steps[done:], start=done + 1):
        for statement in step.format_map(_TYPES[dialect]).split(";"):
            if statement.strip():
                connection.execute(text(statement))
        connection.execute(
            text("INSERT INTO argosy_schema (area, version, applied) VALUES (:area, :version, :applied)"),
            {"area": schema.area, "version": version, "applied": datetime.now(UTC).isoformat()},
        )
