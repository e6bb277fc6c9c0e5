"""Which adapters should be resident and what aliases mean: the part of adapters that all replicas share.

Each method is one transaction and leaves a number behind that grows with every change, by which replicas see that there
is something new. What was done under a caller's request id is noted there too: the same call again answers the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from argosy_services.adapters.alias_store import aliases
from argosy_services.adapters.tables import (
    SCHEMA,
    Operation,
    change,
    count_change,
    done,
    forget_old,
    identify,
    note,
    now,
)
from argosy_services.adapters.types import AliasRecord, Failure
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage.database import Database
from argosy_services.storage.schema import migrate

_ADAPTERS = """
SELECT id, name, source, base_model, pinned, version, failure_reason, failure_message, drain_s, wanted
FROM adapters"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An adapter that should be resident. Its `number` is never used again; a name may be, with another number.

    `version` is empty until a replica has read its files, `failure` set where that could not be done.
    """

    number: int
    name: str
    source: str
    base_model: str
    pinned: bool
    version: str = ""
    failure: Failure | None = None
    drain_s: float = 0.0
    leaving: bool = False

    @property
    def key(self) -> str:
        """Names it in engines."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that should be, as it was at change number `change`. `leaving` is wanted no more."""

    change: int
    wanted: tuple[Wanted, ...]
    leaving: tuple[Wanted, ...]
    aliases: tuple[AliasRecord, ...]


class AdapterStore:
    """The tables of adapters. Lives on an event loop's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self) -> str:
        """Makes the tables; returns a name for this database that no other has. Raises SchemaTooNewError and
        STORE_UNAVAILABLE.
        """
        await asyncio.to_thread(migrate, self._database, SCHEMA)
        return await self._database.write(identify)

    async def change(self) -> int:
        """The number of the last change."""
        return await self._database.read(change)

    async def picture(self) -> Picture:
        """What should be."""
        return await self._database.read(_picture)

    async def want(self, adapter: Wanted, operation: Operation | None = None) -> Wanted:
        """Wants an adapter; its number is not looked at. One of that name, source and model that is wanted already is
        returned as it is, one that failed is replaced. Raises ADAPTER_EXISTS.
        """

        def work(connection: Connection) -> Wanted:
            if (earlier := done(connection, operation)) is not None:
                return _adapter(connection, earlier)
            number = _want(connection, adapter)
            note(connection, operation, number)
            return _adapter(connection, number)

        return await self._database.write(work)

    async def release(self, name: str, drain_s: float, operation: Operation | None = None) -> Wanted | None:
        """Wants an adapter no more; its users have `drain_s` seconds. None: it was not wanted.

        Raises ADAPTER_IN_USE.
        """

        def work(connection: Connection) -> Wanted | None:
            if (earlier := done(connection, operation)) is not None:
                return _adapter(connection, earlier)
            found = _find(connection, name)
            if found is None:
                return None
            _refuse_if_aliased(connection, found)
            _release(connection, found.number, drain_s)
            note(connection, operation, found.number)
            return found

        return await self._database.write(work)

    async def settle(self, number: int, version: str = "", failure: Failure | None = None) -> Wanted | None:
        """Notes what an adapter's files turned out to be, unless another replica was quicker; returns what is noted.

        None: it is wanted no more.
        """

        def work(connection: Connection) -> Wanted | None:
            changed = connection.execute(
                text(
                    "UPDATE adapters SET version = :version, failure_reason = :reason, failure_message = :message "
                    "WHERE id = :id AND wanted = 1 AND version = '' AND failure_reason = ''"
                ),
                {
                    "id": number,
                    "version": version,
                    "reason": failure.reason if failure else "",
                    "message": failure.message if failure else "",
                },
            )
            if changed.rowcount:
                count_change(connection)
            row = connection.execute(text(f"{_ADAPTERS} WHERE id = :id AND wanted = 1"), {"id": number}).one_or_none()
            return None if row is None else _read_adapter(row)

        return await self._database.write(work)


def _want(connection: Connection, adapter: Wanted) -> int:
    present = _find(connection, adapter.name)
    if present is not None and present.failure is None:
        if (present.source, present.base_model) != (adapter.source, adapter.base_model):
            raise ArgosyError(
                Reason.ADAPTER_EXISTS,
                f"adapter '{present.name}' is loaded from {present.source} for {present.base_model}; "
                "unload it first or choose another name",
                adapter=present.name,
            )
        return present.number
    if present is not None:
        _release(connection, present.number, 0.0)
    forget_old(connection)
    count_change(connection)
    return connection.execute(
        text(
            "INSERT INTO adapters (name, source, base_model, pinned, created) "
            "VALUES (:name, :source, :base_model, :pinned, :created) RETURNING id"
        ),
        {
            "name": adapter.name,
            "source": adapter.source,
            "base_model": adapter.base_model,
            "pinned": int(adapter.pinned),
            "created": now(),
        },
    ).scalar_one()


def _release(connection: Connection, number: int, drain_s: float) -> None:
    connection.execute(
        text("UPDATE adapters SET wanted = 0, drain_s = :drain_s, created = :now WHERE id = :id"),
        {"id": number, "drain_s": drain_s, "now": now()},
    )
    count_change(connection)


def _refuse_if_aliased(connection: Connection, adapter: Wanted) -> None:
    twins = connection.execute(
        text("SELECT COUNT(*) FROM adapters WHERE version = :version AND wanted = 1"), {"version": adapter.version}
    ).scalar_one()
    if not adapter.version or twins > 1:
        return
    for alias in aliases(connection):
        if any(target.version == adapter.version for target in alias.targets):
            raise ArgosyError(
                Reason.ADAPTER_IN_USE,
                f"alias '{alias.name}' points at adapter '{adapter.name}'; point it at another version, or "
                "delete it, first",
                adapter=adapter.name,
                alias=alias.name,
            )


def _picture(connection: Connection) -> Picture:
    wanted = connection.execute(text(f"{_ADAPTERS} WHERE wanted = 1 ORDER BY id"))
    leaving = connection.execute(text(f"{_ADAPTERS} WHERE wanted = 0 ORDER BY id"))
    return Picture(
        change(connection),
        tuple(map(_read_adapter, wanted)),
        tuple(map(_read_adapter, leaving)),
        aliases(connection),
    )


def _find(connection: Connection, name: str) -> Wanted | None:
    row = connection.execute(text(f"{_ADAPTERS} WHERE name = :name AND wanted = 1"), {"name": name}).one_or_none()
    return None if row is None else _read_adapter(row)


def _adapter(connection: Connection, number: int) -> Wanted:
    return _read_adapter(connection.execute(text(f"{_ADAPTERS} WHERE id = :id"), {"id": number}).one())


def _read_adapter(row: Row[Any]) -> Wanted:
    failure = Failure(row.failure_reason, row.failure_message) if row.failure_reason else None
    return Wanted(
        row.id,
        row.name,
        row.source,
        row.base_model,
        bool(row.pinned),
        row.version,
        failure,
        float(row.drain_s),
        not row.wanted,
    )
