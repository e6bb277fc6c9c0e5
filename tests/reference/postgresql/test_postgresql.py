"""The SQL store and replicas of adapters on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from tests.unit.adapters.conftest import write_adapter  # noqa: F401 - a fixture
from tests.unit.adapters.processes import Process, start

import argosy
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage.database import Database
from argosy_services.storage.schema import Schema, migrate

S = argosy.AdapterState
COUNTER = Schema("counter", ("CREATE TABLE counter (number INTEGER NOT NULL); INSERT INTO counter VALUES (0)",))
CONVERGE_S = 2.0


@pytest.fixture
def database(dsn: str) -> Iterator[Database]:
    database = Database(dsn)
    yield database
    database.close()


def increase(connection: Connection) -> int:
    number = connection.execute(text("SELECT number FROM counter")).scalar_one()
    time.sleep(0.001)
    connection.execute(text("UPDATE counter SET number = :number"), {"number": number + 1})
    return number + 1


async def test_what_is_read_and_written_at_once_is_as_if_one_after_another(dsn: str, database: Database) -> None:
    other = Database(dsn)
    await asyncio.gather(*(asyncio.to_thread(migrate, each, COUNTER) for each in (database, other)))
    numbers = await asyncio.gather(*(each.write(increase) for each in (database, other) for _ in range(15)))
    assert sorted(numbers) == list(range(1, 31))
    other.close()


async def test_a_server_that_is_away_is_told_and_used_again_once_it_is_back(
    postgresql: Any, database: Database
) -> None:
    migrate(database, COUNTER)
    assert await database.write(increase) == 1
    postgresql.stop()
    with pytest.raises(ArgosyError) as caught:
        await database.write(increase)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert "127.0.0.1" not in caught.value.message
    postgresql.start()
    assert await database.write(increase) == 2


def states(replica: Process) -> dict[str, S]:
    return {adapter.name: adapter.state for adapter in replica.client.adapters.list()}


def agree(wanted: dict[str, S], *replicas: Process, seconds: float = CONVERGE_S) -> float:
    """Waits until all replicas have these adapters in these states; seconds that it took."""
    started = time.monotonic()
    while any(states(replica) != wanted for replica in replicas):
        took = time.monotonic() - started
        assert took < seconds, f"after {took:.1f} s: {[states(replica) for replica in replicas]}"
        time.sleep(0.01)
    return time.monotonic() - started


def test_two_servers_converge_on_every_change_and_after_one_was_killed(
    dsn: str,
    tmp_path: Path,
    write_adapter: Any,  # noqa: F811
) -> None:
    first, second = write_adapter("first"), write_adapter("second", options={"lora_alpha": 8})
    took: dict[str, float] = {}
    with start(dsn, tmp_path / "one", tmp_path) as one:
        with start(dsn, tmp_path / "two", tmp_path) as two:
            one.client.adapters.load("a", first)
            took["load"] = agree({"a": S.READY}, one, two)
            pushed = two.client.adapters.push(second, name="b", alias="x@prod")
            took["push"] = agree({"a": S.READY, "b": S.READY}, one, two)
            assert one.client.adapters.get("b").version == pushed.version
            assert one.client.adapters.get_alias("x@prod").targets == {pushed.version: 1}
            one.client.adapters.set_alias("x@prod", {"a": 1, "b": 1})
            one.client.adapters.rollback_alias("x@prod")
            one.client.adapters.unload("a")
            took["unload"] = agree({"a": S.UNLOADED, "b": S.READY}, one, two)
            two.kill()
        one.client.adapters.load("c", first)
        one.client.adapters.delete_alias("x@prod")
        one.client.adapters.unload("b")
        with start(dsn, tmp_path / "two", tmp_path) as two:
            took["restart"] = agree({"c": S.READY}, two)
            # Of what left meanwhile nothing is kept on either side.
            for side in ("one", "two"):
                assert len([path for path in (tmp_path / side).rglob("*.*") if path.is_file()]) == 2
            one.kill()
            two.client.adapters.load("d", first)
        with start(dsn, tmp_path / "one", tmp_path) as one, start(dsn, tmp_path / "two", tmp_path) as two:
            took["both"] = agree({"c": S.READY, "d": S.READY}, one, two)
    print({what: round(seconds, 2) for what, seconds in took.items()})


@pytest.mark.parametrize("strange", ["\ud800", "a\x00b"])
def test_a_failure_that_quotes_what_text_cannot_hold_is_noted(
    dsn: str,
    database: Database,
    tmp_path: Path,
    write_adapter: Any,  # noqa: F811
    strange: str,
) -> None:
    source = write_adapter(options={strange: True})
    with start(dsn, tmp_path / "cache", tmp_path) as one:
        with pytest.raises(argosy.AdapterInvalidError) as caught:
            one.client.adapters.load("a", source)
        noted = database.look(
            lambda connection: connection.execute(text("SELECT failure_message FROM adapters")).scalar_one()
        )
        assert noted == str(caught.value.message)
