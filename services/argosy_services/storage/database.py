"""One SQL database, SQLite or PostgreSQL, used in transactions that are as good as alone.

Work is a function of a connection. It runs in a thread of the database, never on an event loop's, and may run several
times: transactions are serializable, and one that lost a race is done again.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from argosy_services.errors import ArgosyError, Reason

log = structlog.get_logger("argosy.storage")
T = TypeVar("T")
Work = Callable[[Connection], T]

_THREADS = 4
_ATTEMPTS = 8
_BUSY_S = 10
_CONNECT_S = 5
_RETRY_AFTER_S = 2.0
# PostgreSQL's serialization_failure and deadlock_detected.
_LOST_RACES = frozenset({"40001", "40P01"})
_WRITES = "argosy_writes"
# Any number, the same in all processes: who holds it makes tables.
_LOCK = 7_301_988_442


class Database:
    """A database and the threads that talk to it. `read` and `write` are for event loops, `look` and `transact` for
    threads.
    """

    def __init__(self, dsn: str) -> None:
        """`dsn` is `sqlite:////absolute/file` or `postgresql://user:password@host/name`. Nothing is connected yet.

        Raises ValueError for any other.
        """
        url = _url(dsn)
        self.shared = url.get_backend_name() == "postgresql"
        self._engine = _postgresql(url) if self.shared else _sqlite(url)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="database")

    async def read(self, work: Work[T]) -> T:
        """The result of work that changes nothing and sees one moment. Raises STORE_UNAVAILABLE."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._do, work, False)

    async def write(self, work: Work[T]) -> T:
        """The result of work that may change something: all of it is done, or none. Raises STORE_UNAVAILABLE."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._do, work, True)

    def look(self, work: Work[T]) -> T:
        """`read` for a thread that may block."""
        return self._do(work, False)

    def transact(self, work: Work[T]) -> T:
        """`write` for a thread that may block."""
        return self._do(work, True)

    def alone(self, work: Work[T]) -> T:
        """`transact` for work that makes tables: only one process is about such work at any time."""
        if not self.shared:
            return self._do(work, True)
        # A serializable transaction would not see what was done while it waited for the lock.
        engine = self._engine.execution_options(isolation_level="READ COMMITTED")
        try:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
                return work(connection)
        except DBAPIError as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        """Waits for what runs and closes the connections. Blocks."""
        self._threads.shutdown()
        self._engine.dispose()

    def _do(self, work: Work[T], writes: bool) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._transaction(writes) as connection:
                    return work(connection)
            except DBAPIError as error:
                if not _lost_a_race(error) or attempt == _ATTEMPTS:
                    raise _unavailable(error) from error
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        raise AssertionError("the last attempt returns or raises")

    def _transaction(self, writes: bool) -> AbstractContextManager[Connection]:
        return self._engine.execution_options(**{_WRITES: writes}).begin()


def _url(dsn: str) -> URL:
    try:
        url = make_url(dsn)
    except ArgumentError as error:
        raise ValueError("the DSN is none: write sqlite:////absolute/file or postgresql://user@host/name") from error
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite":
        raise ValueError(f"databases of kind '{url.drivername}' are not supported: use sqlite or postgresql")
    if not url.database or not Path(url.database).is_absolute():
        raise ValueError("the file of an SQLite database must be absolute: sqlite:////absolute/file")
    return url


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, pool_size=_THREADS, max_overflow=0, connect_args={"timeout": _BUSY_S})
    path = Path(str(url.database))

    @event.listens_for(engine, "do_connect")
    def make_private(*_: Any) -> None:
        # What is stored is nobody else's business; the library would make a file that all may read.
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # The module's own transactions begin at the first change, too late to be serializable.
        connection.isolation_level = None
        for setting in ("journal_mode=WAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    limits = f"-c statement_timeout={_BUSY_S * 1000} -c lock_timeout={_BUSY_S * 1000}"
    return create_engine(
        url,
        pool_size=_THREADS,
        max_overflow=0,
        # A connection may have ended with a server that is back by now.
        pool_pre_ping=True,
        isolation_level="SERIALIZABLE",
        connect_args={"connect_timeout": _CONNECT_S, "options": limits},
    )


def _lost_a_race(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) in _LOST_RACES


def _unavailable(error: DBAPIError) -> Exception:
    if not (error.connection_invalidated or _is_operational(error)):
        return error  # a bug of ours, not of the database
    log.warning("the database cannot be used", cause=str(error.orig))
    return ArgosyError(
        Reason.STORE_UNAVAILABLE,
        "the server's database cannot be used just now; what runs goes on, retry this call later",
        retry_after_s=_RETRY_AFTER_S,
    )


def _is_operational(error: DBAPIError) -> bool:
    # SQLite calls a statement that it does not understand an operational error as well.
    misunderstood = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    return isinstance(error, OperationalError | InterfaceError) and not misunderstood
