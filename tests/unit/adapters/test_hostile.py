"""Three hundred hostile adapters against a service that serves a good one all the while."""

from __future__ import annotations

import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.unit.adapters.hostile import Maker

from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.types import AdapterState
from argosy_services.errors import ArgosyError, Reason

COUNT = 300
REASONS = {Reason.ADAPTER_INVALID, Reason.WRONG_BASE_MODEL, Reason.SOURCE_REFUSED}
# Of one refusal on a busy machine, and what all of them may add to the process.
SECONDS = 5.0
GROWTH_BYTES = 100 << 20


async def test_each_is_refused_with_its_reason_in_bounded_time_and_memory(
    service: AdaptersService, shapes: Any, write_adapter: Any, tmp_path: Path, engine: Any
) -> None:
    await service.load("good", f"file://{write_adapter('good')}")
    async for _ in service.watch(["good"], until_settled=True):
        pass
    maker = Maker(tmp_path, dict(shapes), seed=7)
    hostile = maker.make(COUNT)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    slowest = 0.0
    for number, each in enumerate(hostile):
        started = time.monotonic()
        reason, message = await refusal(service, f"h{number}", each.source)
        slowest = max(slowest, time.monotonic() - started)
        assert reason in REASONS, (each, message)
        assert each.says in message, (each, message)
        assert len(message) < 1_000
        assert "\0" not in message.encode().decode(), "it can be stored"
    assert slowest < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH_BYTES
    assert not maker.sentinel.exists(), "code of an adapter was run"
    assert min(Counter(each.kind for each in hostile).values()) >= COUNT // 24
    async with service.lease("good", lambda: None) as lease:
        assert list(engine.inside) == [lease.key]
    assert len(list((tmp_path / "cache").rglob("adapter_*"))) == 2, "only the good one's files are kept"


async def refusal(service: AdaptersService, name: str, source: str) -> tuple[str, str]:
    """Reason and message, whether it is refused at once or found wrong later."""
    try:
        await service.load(name, source)
    except ArgosyError as error:
        return error.reason, error.message
    async for _ in service.watch([name], until_settled=True):
        pass
    record = service.get(name)
    assert record.state is AdapterState.FAILED, (name, source)
    assert record.failure is not None
    return record.failure.reason, record.failure.message
