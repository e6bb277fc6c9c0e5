"""The tables of adapters, and what every change of them has in common: it is counted, and its request is noted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from argosy_services.errors import invalid_field
from argosy_services.storage.schema import Schema

SCHEMA = Schema(
    "adapters",
    (
        """
        CREATE TABLE adapters (
          id {id},
          name TEXT NOT NULL,
          source TEXT NOT NULL,
          base_model TEXT NOT NULL,
          pinned INTEGER NOT NULL,
          version TEXT NOT NULL DEFAULT '',
          failure_reason TEXT NOT NULL DEFAULT '',
          failure_message TEXT NOT NULL DEFAULT '',
          wanted INTEGER NOT NULL DEFAULT 1,
          drain_s REAL NOT NULL DEFAULT 0,
          created TEXT NOT NULL
        );
        CREATE UNIQUE INDEX adapters_wanted ON adapters (name) WHERE wanted = 1;
        CREATE TABLE aliases (name TEXT PRIMARY KEY, revision BIGINT NOT NULL);
        CREATE TABLE alias_revisions (
          id {id},
          alias TEXT NOT NULL,
          parent BIGINT,
          targets TEXT NOT NULL,
          created TEXT NOT NULL
        );
        CREATE TABLE adapter_operations (
          tenant TEXT NOT NULL,
          request_id TEXT NOT NULL,
          what TEXT NOT NULL,
          result BIGINT NOT NULL,
          created TEXT NOT NULL,
          PRIMARY KEY (tenant, request_id)
        );
        CREATE TABLE adapter_uploads (
          version TEXT PRIMARY KEY,
          config_bytes BIGINT NOT NULL,
          weights_bytes BIGINT NOT NULL,
          received BIGINT NOT NULL,
          complete INTEGER NOT NULL,
          touched TEXT NOT NULL
        );
        CREATE TABLE adapter_blobs (
          version TEXT NOT NULL,
          place BIGINT NOT NULL,
          data {bytes} NOT NULL,
          PRIMARY KEY (version, place)
        );
        CREATE TABLE adapter_changes (number BIGINT NOT NULL, identity TEXT NOT NULL);
        INSERT INTO adapter_changes VALUES (0, '')
        """,
    ),
)

# Rows that nobody asks for any more are kept for a while: replicas may be behind, and callers repeat calls.
_MEMORY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Operation:
    """Who asked for a change, by which request, and what it was: a request id stands for one change only."""

    tenant: str
    request_id: str
    what: str


def change(connection: Connection) -> int:
    """The number of the last change."""
    return connection.execute(text("SELECT number FROM adapter_changes")).scalar_one()


def identify(connection: Connection) -> str:
    """A name for this database that no other has."""
    connection.execute(
        text("UPDATE adapter_changes SET identity = :identity WHERE identity = ''"), {"identity": uuid.uuid4().hex}
    )
    return connection.execute(text("SELECT identity FROM adapter_changes")).scalar_one()


def count_change(connection: Connection) -> None:
    """Lets replicas see that something has changed."""
    connection.execute(text("UPDATE adapter_changes SET number = number + 1"))


def done(connection: Connection, operation: Operation | None) -> int | None:
    """The result of an operation that was done before."""
    if operation is None:
        return None
    row = connection.execute(
        text("SELECT what, result FROM adapter_operations WHERE tenant = :tenant AND request_id = :request_id"),
        {"tenant": operation.tenant, "request_id": operation.request_id},
    ).one_or_none()
    if row is None:
        return None
    if row.what != operation.what:
        raise invalid_field(
            "x-request-id", "was used for another change", limit="one change for each id", value=operation.request_id
        )
    return row.result


def note(connection: Connection, operation: Operation | None, result: int) -> None:
    """Remembers what an operation resulted in."""
    if operation is None:
        return
    connection.execute(
        text(
            "INSERT INTO adapter_operations (tenant, request_id, what, result, created) "
            "VALUES (:tenant, :request_id, :what, :result, :created)"
        ),
        {
            "tenant": operation.tenant,
            "request_id": operation.request_id,
            "what": operation.what,
            "result": result,
            "created": now(),
        },
    )


def forget_old(connection: Connection) -> None:
    """Forgets what nobody has asked for in a day: operations, adapters that left, and uploads that nothing came of."""
    limit = {"limit": (datetime.now(UTC) - _MEMORY).isoformat()}
    connection.execute(text("DELETE FROM adapter_operations WHERE created < :limit"), limit)
    connection.execute(text("DELETE FROM adapters WHERE wanted = 0 AND created < :limit"), limit)
    connection.execute(
        text(
            "DELETE FROM adapter_uploads WHERE touched < :limit "
            "AND 'upload://' || version NOT IN (SELECT source FROM adapters WHERE wanted = 1)"
        ),
        limit,
    )
    connection.execute(text("DELETE FROM adapter_blobs WHERE version NOT IN (SELECT version FROM adapter_uploads)"))


def now() -> str:
    """The time, as it is stored."""
    return datetime.now(UTC).isoformat()
