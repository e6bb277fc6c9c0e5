"""When the host of an engine has its replica replaced."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from argosy_services.cluster.engine_host import EngineHost
from argosy_services.engine.base import Finish, StepCallback, StepOutput
from argosy_services.errors import ArgosyError, Reason


class SteeredEngine:
    """Hands out what the test says."""

    def __init__(self) -> None:
        self.healthy = True
        self.on_step: StepCallback = lambda outputs: None

    def start(self, on_step: StepCallback) -> None:
        self.on_step = on_step


async def test_one_sequence_that_was_given_up_costs_no_replica() -> None:
    engine: Any = SteeredEngine()

    async def acquire(adapter: str) -> None:
        return

    host = EngineHost(engine, acquire, lambda adapter: None)
    await host.start("127.0.0.1")
    given_up = ArgosyError(Reason.ENGINE_FAILED, "the library gave up this sequence; retry")
    engine.on_step([StepOutput("a", finish=Finish.FAILED, error=given_up)])
    await asyncio.sleep(0.01)
    host.check_health()
    engine.healthy = False
    with pytest.raises(ArgosyError) as raised:
        host.check_health()
    assert raised.value.reason is Reason.ENGINE_FAILED
    await host.drain()
