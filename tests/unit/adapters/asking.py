"""What tests ask of an adapters service, how long they wait for it, and what they do to its database."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.types import AdapterState

CONVERGE_S = 2.0


async def within(condition: Callable[[], bool], seconds: float = CONVERGE_S) -> None:
    """Waits until something is so."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come about in time"
        await asyncio.sleep(0.005)


def states(service: AdaptersService) -> dict[str, AdapterState]:
    """The states of all adapters."""
    return {record.name: record.state for record in service.records()}


async def ready(service: AdaptersService, source: str, name: str = "a") -> str:
    """Loads an adapter; returns its version once it is READY."""
    await service.load(name, source)
    async for _ in service.watch([name], until_settled=True):
        pass
    record = service.get(name)
    assert record.state is AdapterState.READY, record.failure
    return record.version


async def speaks(service: AdaptersService, name: str, sticky_key: str = "") -> str:
    """The version that answers a request."""
    async with service.lease(name, lambda: None, sticky_key) as lease:
        return lease.version


@contextmanager
def nothing_can_be_written(tmp_path: Path) -> Iterator[None]:
    """Somebody else holds the database's lock for the length of a `with` block."""
    other = sqlite3.connect(tmp_path / "argosy.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def hold_fetching(monkeypatch: pytest.MonkeyPatch, service: AdaptersService) -> threading.Event:
    """Fetching waits for the returned event."""
    may_fetch = threading.Event()
    fetch = service._carrier.sources.fetch

    def late(*arguments: Any) -> None:
        assert may_fetch.wait(20)
        fetch(*arguments)

    monkeypatch.setattr(service._carrier.sources, "fetch", late)
    return may_fetch
