"""A replica that compares its adapters with those that should be there, while these change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.cluster import adapter_replica
from argosy_services.cluster.adapter_replica import AdapterReplica
from argosy_services.cluster.handles import KnownAdapter


class Registry:
    """What the adapters service of a fleet answers, as late as a test likes."""

    def __init__(self) -> None:
        self.known: dict[str, KnownAdapter] = {}
        self.asked = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    async def answer(self, model: str) -> dict[str, KnownAdapter]:
        known = dict(self.known)
        self.asked.set()
        await self.answering.wait()
        return known


@pytest.fixture
def directory(write_adapter: Any) -> Path:
    return write_adapter()


async def test_an_adapter_that_comes_in_while_the_answer_is_on_its_way_stays(
    engine: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, replica = Registry(), AdapterReplica()
    monkeypatch.setattr(adapter_replica, "known_adapters", registry.answer)
    tiers = AdapterTiers(engine, slots=4, memory_bytes=1 << 20)
    known = KnownAdapter(str(directory), pinned=False)
    registry.known = {"old@1": known, "gone@1": known}
    await replica._begin_adapters("small", tiers)
    assert tiers.keys == {"old@1", "gone@1"}

    del registry.known["gone@1"]
    registry.answering.clear()
    registry.asked.clear()
    comparing = asyncio.create_task(replica._reconcile())
    await registry.asked.wait()
    # As `FleetAdapters.add` does it: noted, then sent.
    registry.known["new@1"] = known
    assert await replica.load_adapter("new@1", known) is None
    registry.answering.set()
    await comparing
    assert tiers.keys == {"old@1", "new@1"}

    registry.known = {}
    await replica._reconcile()
    assert tiers.keys == set()
    await replica._end_adapters()
