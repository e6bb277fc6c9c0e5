"""A replica that Ray Serve stops: its watches end, though nobody tells it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from argosy_services import ray_app
from argosy_services.cluster import notice as module
from argosy_services.cluster.notice import StopNotice
from argosy_services.rpc.gate import Gate


async def watch(gate: Gate) -> None:
    async with asyncio.timeout(30) as limit:
        with gate.bound(limit, watch=True):
            await asyncio.sleep(30)


async def test_a_watch_lasts_as_long_as_the_replica_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_S", 0.2)
    gate = Gate()
    gate.open()
    notice = StopNotice(gate)
    watching = asyncio.create_task(watch(gate))
    for _ in range(10):
        notice.checked()
        await asyncio.sleep(0.05)
    assert not watching.done()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watching, 5)
    assert gate.must_end(watch=True)
    assert not gate.must_end(watch=False), "Ray Serve waits for the calls"
    notice.checked()
    assert not gate.must_end(watch=True), "the controller was away, and is back"


@pytest.mark.parametrize("deployment", [ray_app.AdaptersDeployment, ray_app.AgentsDeployment])
async def test_replicas_that_can_be_watched_notice(deployment: Any) -> None:
    checks: list[str] = []
    surroundings = SimpleNamespace(checked=lambda: checks.append("checked"))
    await deployment.check_health(SimpleNamespace(_replica=surroundings))
    assert checks == ["checked"]
