"""Aliases in the SQL store: each setting is a revision that knows the one before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from argosy_services.adapters.tables import Operation, count_change, done, note, now
from argosy_services.adapters.types import AliasRecord, AliasTarget
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage.database import Database

_ALIASES = """
SELECT aliases.name, alias_revisions.id, alias_revisions.targets, alias_revisions.created, alias_revisions.parent
FROM aliases JOIN alias_revisions ON alias_revisions.id = aliases.revision"""


class AliasStore:
    """The tables of aliases. Lives on an event loop's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_alias(
        self, name: str, targets: Sequence[AliasTarget], expected: int | None, operation: Operation | None
    ) -> AliasRecord:
        """Points an alias at weighted versions; what it meant before can be returned to. Raises ADAPTER_NOT_READY where
        a version belongs to no wanted adapter, and ALIAS_CHANGED unless it has the `expected` revision, 0 for none.
        """

        def point(connection: Connection) -> int:
            _check_versions(connection, targets)
            parent = connection.execute(
                text("SELECT revision FROM aliases WHERE name = :name"), {"name": name}
            ).scalar()
            if expected is not None and expected != (parent or 0):
                raise ArgosyError(
                    Reason.ALIAS_CHANGED,
                    f"alias '{name}' has revision {parent or 0}, not {expected}: somebody else has set it; look at it "
                    "and set it again",
                    alias=name,
                    expected=expected,
                    value=parent or 0,
                )
            revision = connection.execute(
                text(
                    "INSERT INTO alias_revisions (alias, parent, targets, created) "
                    "VALUES (:alias, :parent, :targets, :created) RETURNING id"
                ),
                {"alias": name, "parent": parent, "targets": _write_targets(targets), "created": now()},
            ).scalar_one()
            _point(connection, name, revision)
            return revision

        return await self._change_alias(point, operation)

    async def roll_back(self, name: str, operation: Operation | None) -> AliasRecord:
        """Points an alias at what it meant before its last setting; again, at what it meant before that. Raises
        ALIAS_NOT_FOUND, NOTHING_TO_ROLL_BACK, and ADAPTER_NOT_READY where a version is not loaded any more.
        """

        def point(connection: Connection) -> int:
            present = _alias(connection, name)
            if present.parent is None:
                raise ArgosyError(
                    Reason.NOTHING_TO_ROLL_BACK,
                    f"alias '{name}' has no former state; set it, or delete it",
                    alias=name,
                )
            former = _revision(connection, present.parent)
            _check_versions(connection, former.targets)
            _point(connection, name, former.revision)
            return former.revision

        return await self._change_alias(point, operation)

    async def delete_alias(self, name: str, operation: Operation | None) -> AliasRecord:
        """Forgets an alias. Raises ALIAS_NOT_FOUND."""

        def point(connection: Connection) -> int:
            present = _alias(connection, name)
            connection.execute(text("DELETE FROM aliases WHERE name = :name"), {"name": name})
            count_change(connection)
            return present.revision

        return await self._change_alias(point, operation)

    async def alias(self, name: str) -> AliasRecord:
        """What an alias means. Raises ALIAS_NOT_FOUND."""
        return await self._database.read(lambda connection: _alias(connection, name))

    async def _change_alias(self, point: Callable[[Connection], int], operation: Operation | None) -> AliasRecord:
        def work(connection: Connection) -> AliasRecord:
            earlier = done(connection, operation)
            revision = point(connection) if earlier is None else earlier
            if earlier is None:
                note(connection, operation, revision)
            return _revision(connection, revision)

        return await self._database.write(work)


def alias_not_found(name: str) -> ArgosyError:
    """No such alias."""
    return ArgosyError(
        Reason.ALIAS_NOT_FOUND,
        f"alias '{name[:200]}' is not set; set it with SetAlias or `argosy adapters alias`",
        alias=name,
    )


def aliases(connection: Connection) -> tuple[AliasRecord, ...]:
    """All aliases, ordered by name."""
    return tuple(map(_read_alias, connection.execute(text(f"{_ALIASES} ORDER BY aliases.name"))))


def _check_versions(connection: Connection, targets: Sequence[AliasTarget]) -> None:
    known = set(connection.execute(text("SELECT version FROM adapters WHERE wanted = 1 AND version <> ''")).scalars())
    for target in targets:
        if target.version not in known:
            raise ArgosyError(
                Reason.ADAPTER_NOT_READY,
                f"version {target.version} belongs to no loaded adapter; load it first",
                adapter=target.version,
                state="unloaded",
            )


def _point(connection: Connection, alias: str, revision: int) -> None:
    connection.execute(
        text(
            "INSERT INTO aliases (name, revision) VALUES (:name, :revision) "
            "ON CONFLICT (name) DO UPDATE SET revision = excluded.revision"
        ),
        {"name": alias, "revision": revision},
    )
    count_change(connection)


def _alias(connection: Connection, name: str) -> AliasRecord:
    row = connection.execute(text(f"{_ALIASES} WHERE aliases.name = :name"), {"name": name}).one_or_none()
    if row is None:
        raise alias_not_found(name)
    return _read_alias(row)


def _revision(connection: Connection, revision: int) -> AliasRecord:
    row = connection.execute(
        text("SELECT alias AS name, id, targets, created, parent FROM alias_revisions WHERE id = :id"), {"id": revision}
    ).one()
    return _read_alias(row)


def _read_alias(row: Row[Any]) -> AliasRecord:
    return AliasRecord(
        row.name, row.id, _read_targets(row.targets), datetime.fromisoformat(row.created), parent=row.parent
    )


def _write_targets(targets: Sequence[AliasTarget]) -> str:
    return json.dumps([{"version": target.version, "weight": target.weight} for target in targets])


def _read_targets(stored: str) -> tuple[AliasTarget, ...]:
    targets: Sequence[Mapping[str, Any]] = json.loads(stored)
    return tuple(AliasTarget(target["version"], target["weight"]) for target in targets)
