"""The SQL store on SQLite: transactions, versions of tables, failures. PostgreSQL: tests/reference/storage."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from argosy_services.errors import ArgosyError, Reason
from argosy_services.settings import Settings
from argosy_services.storage import database as module
from argosy_services.storage.database import Database
from argosy_services.storage.schema import Schema, SchemaTooNewError, migrate

COUNTER = Schema("counter", ("CREATE TABLE counter (number INTEGER NOT NULL); INSERT INTO counter VALUES (0)",))


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'deep' / 'argosy.db'}"


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    database = Database(dsn)
    yield database
    database.close()


def increase(connection: Connection) -> int:
    number = connection.execute(text("SELECT number FROM counter")).scalar_one()
    connection.execute(text("UPDATE counter SET number = :number"), {"number": number + 1})
    return number + 1


IN_A_PROCESS = """
import sys
from sqlalchemy import text
from argosy_services.storage.database import Database
from argosy_services.storage.schema import Schema, migrate

def increase(connection):
    number = connection.execute(text("SELECT number FROM counter")).scalar_one()
    connection.execute(text("UPDATE counter SET number = :number"), {"number": number + 1})

database = Database(sys.argv[1])
migrate(database, Schema("counter", (sys.argv[2],)))
for _ in range(25):
    database.transact(increase)
database.close()
"""


async def test_what_is_read_and_written_at_once_is_as_if_one_after_another(database: Database) -> None:
    migrate(database, COUNTER)
    numbers = await asyncio.gather(*(database.write(increase) for _ in range(50)))
    assert sorted(numbers) == list(range(1, 51))


def test_processes_share_it_and_make_its_tables_once(dsn: str, database: Database) -> None:
    command = [sys.executable, "-c", IN_A_PROCESS, dsn, COUNTER.steps[0]]
    children = [subprocess.Popen(command) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert database.transact(increase) == 76


async def test_work_that_fails_leaves_nothing(database: Database) -> None:
    migrate(database, COUNTER)

    def fail(connection: Connection) -> None:
        increase(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(fail)
    assert await database.write(increase) == 1


async def test_work_is_not_done_on_the_event_loop(database: Database) -> None:
    threads = {await database.read(lambda _: threading.current_thread()) for _ in range(3)}
    assert threading.current_thread() not in threads


def test_the_file_is_private(database: Database, dsn: str) -> None:
    migrate(database, COUNTER)
    path = Path(dsn.removeprefix("sqlite:///"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_later_steps_are_taken_on_top_of_earlier_ones(database: Database) -> None:
    migrate(database, COUNTER)
    database.transact(increase)
    later = Schema("counter", (*COUNTER.steps, "ALTER TABLE counter ADD COLUMN name TEXT NOT NULL DEFAULT 'x'"))
    for _ in range(2):
        migrate(database, later)
    row = database.transact(lambda connection: connection.execute(text("SELECT number, name FROM counter")).one())
    assert tuple(row) == (1, "x")


def test_a_step_that_fails_is_not_taken_at_all(database: Database) -> None:
    broken = Schema("counter", ("CREATE TABLE counter (number INTEGER); NONSENSE",))
    with pytest.raises(Exception, match="NONSENSE"):
        migrate(database, broken)
    migrate(database, COUNTER)
    assert database.transact(increase) == 1


def test_a_database_of_a_later_version_is_refused(database: Database) -> None:
    migrate(database, Schema("counter", (*COUNTER.steps, "CREATE TABLE other (x INTEGER)")))
    with pytest.raises(SchemaTooNewError, match=r"version 2, this Argosy knows 1"):
        migrate(database, COUNTER)


async def test_a_database_that_cannot_be_used_is_told_without_its_details(
    tmp_path: Path, dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BUSY_S", 0.1)
    migrate(database, COUNTER)
    other = sqlite3.connect(dsn.removeprefix("sqlite:///"), isolation_level=None)
    impatient = Database(dsn)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ArgosyError) as caught:
        await impatient.write(increase)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert caught.value.retry_after_s
    assert "locked" not in caught.value.message
    other.execute("ROLLBACK")
    assert await impatient.write(increase) == 1
    impatient.close()
    other.close()


@pytest.mark.parametrize(
    "dsn", ["", "argosy.db", "sqlite:///relative", "sqlite://", "mysql://host/name", "http://host"]
)
def test_another_dsn_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match=r"sqlite|postgresql"):
        Database(dsn)


def test_the_setting_is_checked_and_kept_secret(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).database_dsn == f"sqlite:///{tmp_path}/argosy.db"
    given = "postgresql://argosy:secret@host/name"
    settings = Settings(database={"dsn": given})  # type: ignore[arg-type]
    assert settings.database_dsn == given
    assert "secret" not in str(settings.redacted())
    with pytest.raises(ValueError, match=r"database\.dsn is neither"):
        Settings(database={"dsn": "mysql://host"})  # type: ignore[arg-type]
