"""What an adapter makes of moments without its database, and of failures that are its replica's, not its own."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.unit.adapters.asking import hold_fetching, nothing_can_be_written, ready, speaks, states, within

from argosy_services.adapters.failed import FailedHere
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.types import AdapterState
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage import database

S = AdapterState


@pytest.fixture
def source(write_adapter: Any) -> str:
    return f"file://{write_adapter()}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that others hold is given up soon, and tried again soon."""
    monkeypatch.setattr(database, "_BUSY_S", 0.05)
    monkeypatch.setattr(database, "_RETRY_AFTER_S", 0.05)


def kept_files(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").rglob("adapter_*")))


async def test_what_comes_back_does_not_need_to_write(
    start_service: Any, engine: Any, source: str, tmp_path: Path
) -> None:
    async with start_service() as first:
        await ready(first, source)
    engine.may_read.clear()
    async with start_service() as second:
        with nothing_can_be_written(tmp_path):
            engine.may_read.set()
            await within(lambda: states(second) == {"a": S.READY})


async def test_what_is_new_waits_for_the_database(start_service: Any, engine: Any, source: str, tmp_path: Path) -> None:
    async with start_service() as service:
        engine.may_read.clear()
        await service.load("a", source)
        await within(lambda: states(service) == {"a": S.VALIDATING})
        with nothing_can_be_written(tmp_path):
            engine.may_read.set()
            await asyncio.sleep(0.3)
            assert states(service) == {"a": S.VALIDATING}
        await within(lambda: states(service) == {"a": S.READY})


async def test_a_failure_of_the_replica_is_tried_again_and_leaves_the_files(
    service: AdaptersService, engine: Any, source: str, tmp_path: Path
) -> None:
    engine.load_error = ArgosyError(Reason.ENGINE_FAILED, "the engine stopped", retry_after_s=0.01)
    await service.load("a", source)
    await within(lambda: states(service) == {"a": S.FAILED})
    assert kept_files(tmp_path) == 2
    engine.load_error = None
    await within(lambda: states(service) == {"a": S.READY})
    assert await speaks(service, "a") == service.get("a").version
    await service.unload("a", 0)
    await within(lambda: kept_files(tmp_path) == 0)


def test_one_that_goes_on_failing_is_tried_less_and_less_often() -> None:
    now = 0.0
    failed = FailedHere(lambda: now)
    tried = []
    failed.note(7, 5.0)
    while now < 300:
        now += 1
        if failed.due(7):
            failed.begun(7)
            assert not failed.due(7)
            tried.append(now)
            failed.note(7, 5.0)
    assert tried == [5, 15, 35, 75, 135, 195, 255]
    failed.note(8, None)
    now = 1e9
    assert not failed.due(8)


def test_files_are_removed_of_those_that_failed_and_are_not_wanted() -> None:
    failed = FailedHere()
    for number in (1, 2, 3):
        failed.note(number, 0.0)
    failed.begun(2)
    assert failed.forget({3}) == [1], "the files of the second one are in use again"
    assert failed.forget({3}) == []
    assert failed.due(3)


async def test_one_whose_source_is_gone_leaves_the_files_of_another_process(
    start_service: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_service() as one, start_service(replica=True) as two:
        may_fetch = {service: hold_fetching(monkeypatch, service) for service in (one, two)}
        await one.load("a", source)
        await within(lambda: states(one) == states(two) == {"a": S.FETCHING})
        # Both wait for the source by now, and do not look for what others have kept.
        await asyncio.sleep(0.05)
        may_fetch[one].set()
        await within(lambda: states(one) == {"a": S.READY})
        shutil.rmtree(tmp_path / "adapter")
        may_fetch[two].set()
        await within(lambda: states(two) == {"a": S.FAILED})
        assert kept_files(tmp_path) == 2


async def test_files_of_a_failed_one_go_with_it(
    service: AdaptersService, engine: Any, source: str, tmp_path: Path
) -> None:
    engine.load_error = ArgosyError(Reason.ADAPTER_SLOTS_FULL, "all 1 slots are taken")
    await service.load("a", source)
    await within(lambda: states(service) == {"a": S.FAILED})
    assert kept_files(tmp_path) == 2
    await service.unload("a")
    await within(lambda: kept_files(tmp_path) == 0)


async def test_one_that_fails_for_a_moment_after_a_restart_does_not_lose_its_only_files(
    start_service: Any, engine: Any, source: str, tmp_path: Path
) -> None:
    async with start_service() as first:
        version = await ready(first, source)
    for path in (tmp_path / "adapter").iterdir():
        path.unlink()
    engine.read_error = ArgosyError(Reason.STARTING, "no replica is there yet", retry_after_s=0.01)
    async with start_service() as second:
        await within(lambda: states(second) == {"a": S.FAILED})
        engine.read_error = None
        await within(lambda: states(second) == {"a": S.READY})
        assert await speaks(second, "a") == version


async def test_a_failure_that_cannot_be_noted_is_still_one(
    service: AdaptersService, engine: Any, write_adapter: Any
) -> None:
    source = f"file://{write_adapter(options={'use_dora': True})}"
    engine.may_read.clear()
    await service.load("a", source)
    await within(lambda: states(service) == {"a": S.VALIDATING})
    tables = service._store._database
    await tables.write(lambda connection: connection.execute(text("ALTER TABLE adapters RENAME TO away")).close())
    engine.may_read.set()
    # The log's traceback with all its locals takes its time.
    await within(lambda: states(service) == {"a": S.FAILED}, 15)
    await tables.write(lambda connection: connection.execute(text("ALTER TABLE away RENAME TO adapters")).close())
    await service.unload("a")
