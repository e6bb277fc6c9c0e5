"""Adapters that come and go: their whole life, and everything that can cross it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.adapters.asking import hold_fetching

from argosy_services import metrics
from argosy_services.adapters import carrier, waiting
from argosy_services.adapters import service as module
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.types import AdapterRecord, AdapterState, SnapshotComplete
from argosy_services.errors import ArgosyError, Reason
from argosy_services.leases import AdapterLeases

S = AdapterState
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def source(write_adapter: Any) -> str:
    return f"file://{write_adapter()}"


async def settled(service: AdaptersService, *names: str) -> list[AdapterRecord]:
    """The records of adapters once all of them are settled."""
    async with asyncio.timeout(20):
        async for _ in service.watch(names, until_settled=True):
            pass
    return [service.get(name) for name in names]


async def reaches(service: AdaptersService, name: str, state: AdapterState) -> AdapterRecord:
    async with asyncio.timeout(20):
        while service.get(name).state is not state:
            await asyncio.sleep(0.002)
    return service.get(name)


async def ready(service: AdaptersService, source: str, name: str = "a") -> AdapterRecord:
    await service.load(name, source)
    (record,) = await settled(service, name)
    assert record.state is S.READY
    return record


def no_revoke() -> None:
    raise AssertionError("this lease must not be revoked")


def refused(reason: Reason) -> Any:
    return pytest.raises(ArgosyError, check=lambda error: error.reason is reason)


async def test_an_adapter_comes_serves_and_goes(service: AdaptersService, engine: Any, source: str) -> None:
    leases: AdapterLeases = service
    loads = metrics.ADAPTER_LOAD_SECONDS.now().sum
    accepted = await service.load("a", source)
    assert (accepted.state, accepted.base_model, accepted.source) == (S.PENDING, "small", source)
    assert (accepted.version, accepted.rank, accepted.size_bytes) == ("", 0, 0)
    (record,) = await settled(service, "a")
    assert record.state is S.READY
    assert record.failure is None
    assert record.rank == 2
    assert record.target_modules == ("down_proj", "q_proj")
    assert record.size_bytes > 0
    assert len(record.version) == 64
    assert record.revision > accepted.revision
    assert record.updated > record.created == accepted.created
    assert metrics.ADAPTER_LOAD_SECONDS.now().sum > loads
    async with leases.lease("a", no_revoke) as lease:
        assert (lease.name, lease.version) == ("a", record.version)
        assert list(engine.inside) == [lease.key]
        assert service.get("a").active_leases == 1
        assert metrics.ADAPTER_LEASES.now() == 1
    assert service.get("a").active_leases == 0
    assert (await service.unload("a")).state is S.DRAINING
    (gone,) = await settled(service, "a")
    assert (gone.state, gone.size_bytes, gone.version) == (S.UNLOADED, 0, record.version)
    assert engine.inside == {}


async def test_the_copy_is_kept_while_it_is_loaded_and_independent_of_its_source(
    service: AdaptersService, engine: Any, source: str, tmp_path: Path
) -> None:
    engine.may_read.clear()
    await service.load("a", source)
    await reaches(service, "a", S.VALIDATING)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"changed after it was copied")
    engine.may_read.set()
    (record,) = await settled(service, "a")
    assert record.state is S.READY
    assert len(list((tmp_path / "cache").rglob("adapter_*"))) == 2
    await service.unload("a")
    await settled(service, "a")
    assert list((tmp_path / "cache").rglob("adapter_*")) == []


async def test_loading_again_is_the_same_adapter_until_it_is_final(
    service: AdaptersService, engine: Any, source: str
) -> None:
    engine.may_read.clear()
    first = await service.load("a", source)
    assert (await service.load("a", source + "/")).created == first.created
    engine.may_read.set()
    (record,) = await settled(service, "a")
    assert await service.load("a", source) == record
    await service.unload("a")
    await settled(service, "a")
    again = await service.load("a", source)
    assert again.state is S.PENDING
    assert again.created > first.created
    await settled(service, "a")
    keys = [key for call, key in engine.calls if call == "load"]
    assert len(set(keys)) == len(keys) == 2


async def test_two_loads_at_once_make_one_adapter(service: AdaptersService, engine: Any, source: str) -> None:
    records = await asyncio.gather(*(service.load("a", source) for _ in range(10)))
    assert len({record.created for record in records}) == 1
    await settled(service, "a")
    assert [call for call, _ in engine.calls] == ["read", "load"]


async def test_a_name_is_for_one_source_and_one_model(
    service: AdaptersService, source: str, write_adapter: Any
) -> None:
    await ready(service, source)
    with refused(Reason.ADAPTER_EXISTS):
        await service.load("a", f"file://{write_adapter('b')}")
    with refused(Reason.ADAPTER_EXISTS):
        await service.load("a", source, "other")
    (record,) = await settled(service, "a")
    assert record.state is S.READY


async def test_one_content_under_two_names(service: AdaptersService, engine: Any, source: str) -> None:
    first, second = await ready(service, source), await ready(service, source, "b")
    assert first.version == second.version
    assert len(engine.inside) == 2


@pytest.mark.parametrize(
    ("name", "source", "model", "reason"),
    [
        ("", "file:///x", "", Reason.INVALID_FIELD),
        ("-a", "file:///x", "", Reason.INVALID_FIELD),
        ("a b", "file:///x", "", Reason.INVALID_FIELD),
        ("a\n", "file:///x", "", Reason.INVALID_FIELD),
        ("ä", "file:///x", "", Reason.INVALID_FIELD),
        ("a@1", "file:///x", "", Reason.INVALID_FIELD),
        ("a" * 129, "file:///x", "", Reason.INVALID_FIELD),
        ("a", "file:///x", "unknown", Reason.MODEL_NOT_FOUND),
        ("a", "file:///x", "", Reason.SOURCE_REFUSED),
        ("a", "", "", Reason.SOURCE_REFUSED),
        ("a", "s3://bucket/x", "", Reason.SOURCE_REFUSED),
    ],
)
async def test_what_is_refused_at_once_leaves_nothing(
    service: AdaptersService, name: str, source: str, model: str, reason: Reason
) -> None:
    with refused(reason):
        await service.load(name, source, model)
    assert service.records() == []


async def test_the_longest_name_is_accepted(service: AdaptersService, source: str) -> None:
    await ready(service, source, "9" + "a.b-c_" * 21 + "z")


@pytest.mark.parametrize("state", [S.PENDING, S.FETCHING, S.VALIDATING, S.LOADING, S.DRAINING, S.UNLOADED, S.FAILED])
async def test_only_a_ready_adapter_is_leased(
    service: AdaptersService, engine: Any, source: str, state: AdapterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It shall not learn from the store that the version is known: such a one is waited for.
    service._following.cancel()
    may_copy = hold_fetching(monkeypatch, service) if state is S.FETCHING else threading.Event()
    engine.holding = state is S.LOADING
    if state is S.FAILED:
        engine.load_error = ArgosyError(Reason.ADAPTER_SLOTS_FULL, "all 1 slots are taken")
    if state is S.VALIDATING:
        engine.may_read.clear()
    await service.load("a", source)
    if state in (S.DRAINING, S.UNLOADED):
        await settled(service, "a")
        engine.holding = state is S.DRAINING
        await service.unload("a")
    await reaches(service, "a", state)
    with pytest.raises(ArgosyError) as caught:
        async with service.lease("a", no_revoke):
            pass
    assert caught.value.reason is Reason.ADAPTER_NOT_READY
    assert caught.value.metadata == {"adapter": "a", "state": state.value}
    assert ("all 1 slots are taken" in caught.value.message) == (state is S.FAILED)
    may_copy.set()


async def test_an_unknown_adapter_is_not_found(service: AdaptersService) -> None:
    with refused(Reason.ADAPTER_NOT_FOUND):
        async with service.lease("nobody", no_revoke):
            pass
    with refused(Reason.ADAPTER_NOT_FOUND):
        service.get("nobody")
    with refused(Reason.ADAPTER_NOT_FOUND):
        await service.unload("nobody")
    with refused(Reason.ADAPTER_NOT_FOUND):
        await anext(service.watch(["nobody"]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tensors": {A: torch.zeros(3, 8)}}, (Reason.ADAPTER_INVALID, "given: A [3, 8]")),
        ({"tensors": {A: torch.zeros(2, 9), B: torch.zeros(9, 2)}}, (Reason.WRONG_BASE_MODEL, "9 x 9")),
        ({"options": {"use_dora": True}}, (Reason.ADAPTER_INVALID, "DoRA")),
        ({"tensors": {A: torch.full((2, 8), float("inf"))}}, (Reason.ADAPTER_INVALID, "infinity")),
        ({"tensors": {A: torch.zeros(2, 40_000)}}, (Reason.ADAPTER_INVALID, "more than 100000 bytes")),
    ],
)
async def test_a_bad_adapter_fails_with_its_reason(
    service: AdaptersService, write_adapter: Any, options: Any, expected: tuple[Reason, str]
) -> None:
    reason, said = expected
    await service.load("a", f"file://{write_adapter(**options)}")
    (record,) = await settled(service, "a")
    assert record.state is S.FAILED
    assert record.failure is not None
    assert record.failure.reason == reason
    assert said in record.failure.message
    assert [entry.name for entry in service._cache._own.iterdir()] == ["lock"]


async def test_a_failed_name_can_be_used_again(service: AdaptersService, source: str, tmp_path: Path) -> None:
    await service.load("a", f"file://{tmp_path}/nothing")
    (failed,) = await settled(service, "a")
    assert failed.state is S.FAILED
    assert (await service.unload("a")) == failed  # nothing to do, and no error
    record = await ready(service, source)
    assert record.failure is None
    assert record.source == source


async def test_full_slots_fail_the_adapter_that_does_not_fit(
    service: AdaptersService, engine: Any, source: str
) -> None:
    await ready(service, source)
    engine.load_error = ArgosyError(Reason.ADAPTER_SLOTS_FULL, "all 1 slots are taken", limit=1)
    await service.load("b", source)
    first, second = await settled(service, "a", "b")
    assert (first.state, second.state) == (S.READY, S.FAILED)
    assert second.failure is not None
    assert second.failure.reason == "ADAPTER_SLOTS_FULL"
    assert [call for call, _ in engine.calls].count("unload") == 0


@pytest.mark.parametrize("step", ["read", "load", "unload"])
async def test_a_bug_in_the_background_is_told_without_its_details(
    service: AdaptersService, engine: Any, source: str, step: str
) -> None:
    setattr(engine, f"{step}_error", ZeroDivisionError("secret detail"))
    engine.taken_though_failed = True
    await service.load("a", source)
    await settled(service, "a")
    if step == "unload":
        await service.unload("a")
        await settled(service, "a")
    record = service.get("a")
    assert record.state is S.FAILED
    assert record.failure is not None
    assert record.failure.reason == "INTERNAL"
    assert "secret" not in record.failure.message
    assert engine.inside == {}, "what the engine may have taken is taken out again"
    engine.read_error = engine.load_error = engine.unload_error = None
    await ready(service, source)


async def test_an_engine_that_cannot_free_an_adapter_is_told_of(
    service: AdaptersService, engine: Any, source: str, tmp_path: Path
) -> None:
    await ready(service, source)
    engine.unload_error = ArgosyError(Reason.ENGINE_FAILED, "the engine stopped")
    await service.unload("a")
    (record,) = await settled(service, "a")
    assert record.state is S.FAILED
    assert record.failure is not None
    assert record.failure.reason == "ENGINE_FAILED"
    assert list((tmp_path / "cache").rglob("adapter_*")) == []


async def test_unload_while_it_waits_for_its_turn(
    service: AdaptersService, engine: Any, source: str, write_adapter: Any
) -> None:
    engine.may_read.clear()
    for name in ("a", "b", "c", "d"):
        await service.load(name, source)
    await reaches(service, "b", S.VALIDATING)
    assert [service.get(name).state for name in ("c", "d")] == [S.PENDING, S.PENDING]
    await service.unload("c")
    (record,) = await settled(service, "c")  # though the others still hold their turns
    assert record.state is S.UNLOADED
    engine.may_read.set()
    assert {record.state for record in await settled(service, "a", "b", "d")} == {S.READY}
    assert len(engine.inside) == 3


async def test_unload_at_once(service: AdaptersService, engine: Any, source: str) -> None:
    """Before the background work took its first step."""
    await service.load("a", source)
    assert (await service.unload("a")).state is S.DRAINING
    (record,) = await settled(service, "a")
    assert (record.state, record.failure) == (S.UNLOADED, None)
    assert not engine.inside


async def test_unload_while_its_files_are_copied(
    service: AdaptersService, engine: Any, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_copy = hold_fetching(monkeypatch, service)
    await service.load("a", source)
    await reaches(service, "a", S.FETCHING)
    await service.unload("a")
    await asyncio.sleep(0.02)
    assert service.get("a").state is S.DRAINING  # not gone before its thread is
    may_copy.set()
    (record,) = await settled(service, "a")
    assert (record.state, record.failure) == (S.UNLOADED, None)
    assert not engine.inside
    assert list((tmp_path / "cache").rglob("adapter_*")) == []


@pytest.mark.parametrize("fails", [False, True])
async def test_unload_while_it_is_validated(service: AdaptersService, engine: Any, source: str, fails: bool) -> None:
    engine.may_read.clear()
    engine.read_error = ArgosyError(Reason.ADAPTER_INVALID, "bad") if fails else None
    await service.load("a", source)
    await reaches(service, "a", S.VALIDATING)
    await service.unload("a")
    engine.may_read.set()
    (record,) = await settled(service, "a")
    assert (record.state, record.failure) == (S.UNLOADED, None)
    assert [call for call, _ in engine.calls] == ["read"]


async def test_unload_while_the_engine_takes_it(service: AdaptersService, engine: Any, source: str) -> None:
    engine.holding = True
    await service.load("a", source)
    await reaches(service, "a", S.LOADING)
    await service.unload("a")
    await asyncio.sleep(0.02)
    assert service.get("a").state is S.DRAINING
    engine.release()
    (record,) = await settled(service, "a")
    assert record.state is S.UNLOADED
    assert [call for call, _ in engine.calls] == ["read", "load", "unload"]
    assert engine.inside == {}


async def test_a_name_that_drains_cannot_be_loaded_yet(service: AdaptersService, engine: Any, source: str) -> None:
    await ready(service, source)
    async with service.lease("a", no_revoke):
        await service.unload("a")
        with refused(Reason.ADAPTER_NOT_READY):
            await service.load("a", source)
    await settled(service, "a")
    await ready(service, source)


async def test_draining_waits_for_running_leases_and_admits_none(
    service: AdaptersService, engine: Any, source: str
) -> None:
    await ready(service, source)
    async with AsyncExitStack() as first:
        await first.enter_async_context(service.lease("a", no_revoke))
        async with service.lease("a", no_revoke):
            await service.unload("a", 60)
            with refused(Reason.ADAPTER_NOT_READY):
                async with service.lease("a", no_revoke):
                    pass
            assert service.get("a").active_leases == 2
        await asyncio.sleep(0.02)
        assert service.get("a").state is S.DRAINING
        assert len(engine.inside) == 1
    (record,) = await settled(service, "a")
    assert record.state is S.UNLOADED
    assert engine.inside == {}


async def test_leases_are_revoked_at_the_deadline_and_not_before(
    service: AdaptersService, engine: Any, source: str
) -> None:
    await ready(service, source)
    loop, started = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    revoked: list[float] = []

    async def use(ended: asyncio.Event) -> None:
        def revoke() -> None:
            revoked.append(loop.time() - started)
            ended.set()

        async with service.lease("a", revoke):
            await ended.wait()
            assert len(engine.inside) == 1, "an adapter must not leave the engine while it is leased"

    async with asyncio.TaskGroup() as users:
        done = asyncio.Event()
        users.create_task(use(done))
        for _ in range(3):
            users.create_task(use(asyncio.Event()))
        await asyncio.sleep(0)
        await service.unload("a", 0.2)
        done.set()
    assert len(revoked) == 3
    assert min(revoked) >= 0.19
    (record,) = await settled(service, "a")
    assert record.state is S.UNLOADED


async def test_an_earlier_deadline_counts(service: AdaptersService, source: str) -> None:
    await ready(service, source)
    revoked = asyncio.Event()
    async with service.lease("a", revoked.set):
        await service.unload("a", 3600)
        await asyncio.sleep(0.02)
        assert not revoked.is_set()
        await service.unload("a", 0.05)
        await service.unload("a", 3600)
        await asyncio.wait_for(revoked.wait(), 5)
    await settled(service, "a")


async def test_no_time_to_drain_revokes_at_once(service: AdaptersService, source: str) -> None:
    await ready(service, source)
    revoked = asyncio.Event()
    async with service.lease("a", revoked.set):
        await service.unload("a", 0)
        await asyncio.wait_for(revoked.wait(), 5)
    (record,) = await settled(service, "a")
    assert record.state is S.UNLOADED


async def test_holders_that_fail_or_never_end_do_not_stop_an_unload(
    service: AdaptersService, engine: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier, "_REVOKE_GRACE_S", 0.05)
    await ready(service, source)
    async with service.lease("a", no_revoke) as old, service.lease("a", lambda: None):
        await service.unload("a", 0)
        (record,) = await settled(service, "a")
        assert record.state is S.UNLOADED
        assert engine.inside == {}
        await ready(service, source)
        assert service.get("a").active_leases == 0  # those of the old adapter are not the new one's
        async with service.lease("a", no_revoke) as new:
            assert new.key != old.key


@pytest.mark.parametrize("seconds", [-1, 3600.5, float("nan"), float("inf")])
async def test_the_time_to_drain_is_bounded(service: AdaptersService, source: str, seconds: float) -> None:
    await ready(service, source)
    with refused(Reason.INVALID_FIELD):
        await service.unload("a", seconds)
    assert service.get("a").state is S.READY


async def test_too_many_waiting_adapters_are_refused(
    service: AdaptersService, engine: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 3)
    await ready(service, source)
    engine.may_read.clear()
    for name in ("b", "c", "d"):
        await service.load(name, source)
    with pytest.raises(ArgosyError) as caught:
        await service.load("e", source)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s
    engine.may_read.set()
    await settled(service, "b", "c", "d")
    await ready(service, source, "e")


async def test_close_while_everything_is_under_way(
    service: AdaptersService, engine: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(service, source)
    engine.may_read.clear()
    for name in ("b", "c", "d"):
        await service.load(name, source)
    await reaches(service, "c", S.VALIDATING)
    async with service.lease("a", no_revoke):
        await service.unload("a")
        closing = asyncio.create_task(service.close())
        await asyncio.sleep(0.02)
        assert not closing.done()  # a thread still reads
        engine.may_read.set()
        await closing
    with refused(Reason.DRAINING):
        await service.load("z", source)
    assert service.records() == []


async def test_close_does_not_wait_for_an_engine_for_ever(
    service: AdaptersService, engine: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_ENGINE_PATIENCE_S", 0.05)
    engine.holding = True
    await service.load("a", source)
    await reaches(service, "a", S.LOADING)
    await asyncio.wait_for(service.close(), 5)
    engine.load_error = RuntimeError("too late")
    engine.release()
    await asyncio.sleep(0.01)


async def test_many_loads_and_unloads_at_random_leave_nothing(
    service: AdaptersService, engine: Any, source: str, write_adapter: Any, tmp_path: Path
) -> None:
    """Races of several callers over few names. Whoever holds a lease has the adapter it names in the engine."""
    other = f"file://{write_adapter('other')}"

    async def load(name: str) -> None:
        for source_now in (source, other, source) * 4:
            with suppress(ArgosyError):
                await service.load(name, source_now)
            await asyncio.sleep(0.003)

    async def unload(name: str) -> None:
        for _ in range(12):
            with suppress(ArgosyError):
                await service.unload(name, 0.001)
            await asyncio.sleep(0.004)

    async def use(name: str) -> None:
        for _ in range(20):
            ended = asyncio.Event()
            with suppress(ArgosyError, TimeoutError):
                async with service.lease(name, ended.set) as lease:
                    await asyncio.wait_for(ended.wait(), 0.002)
                    assert lease.key in engine.inside
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as callers:
        for name in ("a", "b", "c"):
            for what in (load, unload, use, use):
                callers.create_task(what(name))
    for name in ("a", "b", "c"):
        await service.unload(name, 0)
    for record in await settled(service, "a", "b", "c"):
        assert (record.state, record.failure, record.active_leases) == (S.UNLOADED, None, 0)
    assert engine.inside == {}
    assert list((tmp_path / "cache").rglob("adapter_*")) == []
    loads = [key for call, key in engine.calls if call == "load"]
    assert len(set(loads)) == len(loads)
    assert sorted(loads) == sorted(key for call, key in engine.calls if call == "unload")


class Watcher:
    """Reads a watch in the background."""

    def __init__(self, events: Any) -> None:
        self.events: list[AdapterRecord | SnapshotComplete] = []
        self._news = asyncio.Condition()
        self.task = asyncio.create_task(self._read(events))

    async def _read(self, events: Any) -> None:
        async for event in events:
            async with self._news:
                self.events.append(event)
                self._news.notify_all()

    async def until(self, condition: Callable[[list[Any]], bool]) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: condition(self.events))

    def states(self, name: str) -> list[AdapterState]:
        return [event.state for event in self.events if isinstance(event, AdapterRecord) and event.name == name]


@pytest.fixture
def watching(service: AdaptersService) -> Iterator[Callable[..., Watcher]]:
    watchers: list[Watcher] = []

    def start(*names: str, until_settled: bool = False) -> Watcher:
        watchers.append(Watcher(service.watch(names, until_settled=until_settled)))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.task.cancel()


async def test_a_watch_begins_with_what_is_and_goes_on_with_what_changes(
    service: AdaptersService, source: str, watching: Any
) -> None:
    for name in ("b", "a"):
        await ready(service, source, name)
    watcher = watching()
    await watcher.until(lambda events: len(events) == 3)
    assert [getattr(event, "name", None) for event in watcher.events] == ["a", "b", None]
    snapshot = watcher.events[-1]
    assert snapshot == SnapshotComplete(max(record.revision for record in service.records()))
    await ready(service, source, "c")
    await service.unload("a")
    await settled(service, "a")
    await watcher.until(lambda events: watcher.states("a")[-1] is S.UNLOADED and S.READY in watcher.states("c"))
    assert watcher.states("b") == [S.READY]
    changes = [event.revision for event in watcher.events[3:] if isinstance(event, AdapterRecord)]
    assert changes == sorted(set(changes))
    assert changes[0] > snapshot.revision


async def test_a_watch_of_names_sees_only_those_and_every_stage(
    service: AdaptersService, engine: Any, source: str, watching: Any
) -> None:
    engine.may_read.clear()
    await service.load("a", source)
    await service.load("b", source)
    watcher = watching("a")
    await watcher.until(lambda events: S.VALIDATING in watcher.states("a"))
    engine.holding = True
    engine.may_read.set()
    await watcher.until(lambda events: S.LOADING in watcher.states("a"))
    engine.release()
    await watcher.until(lambda events: S.READY in watcher.states("a"))
    await service.unload("a")
    await watcher.until(lambda events: S.UNLOADED in watcher.states("a"))
    assert watcher.states("a")[-5:] == [S.VALIDATING, S.LOADING, S.READY, S.DRAINING, S.UNLOADED]
    assert watcher.states("b") == []
    await settled(service, "b")


async def test_watchers_all_see_every_settled_state(service: AdaptersService, source: str, watching: Any) -> None:
    watchers = [watching() for _ in range(5)]

    async def all_see(state: AdapterState) -> None:
        for watcher in watchers:
            await watcher.until(lambda events, watcher=watcher: watcher.states("a")[-1:] == [state])

    for _ in range(5):
        await ready(service, source)
        await all_see(S.READY)
        await service.unload("a")
        await all_see(S.UNLOADED)
    for watcher in watchers:
        seen = [state for state in watcher.states("a") if state in (S.READY, S.UNLOADED)]
        assert seen == [S.READY, S.UNLOADED] * 5


async def test_a_slow_watcher_gets_the_latest_states_and_no_queue(service: AdaptersService, source: str) -> None:
    watch = service.watch()
    assert isinstance(await anext(watch), SnapshotComplete)
    for _ in range(4):
        await ready(service, source)
        await service.unload("a")
        await settled(service, "a")
    await ready(service, source, "b")
    first, second = await anext(watch), await anext(watch)
    assert isinstance(first, AdapterRecord)
    assert isinstance(second, AdapterRecord)
    assert (first.name, first.state) == ("a", S.UNLOADED)
    assert (second.name, second.state) == ("b", S.READY)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.02)
    await watch.aclose()


async def test_until_settled_ends_when_all_are(
    service: AdaptersService, engine: Any, source: str, tmp_path: Path, watching: Any
) -> None:
    engine.may_read.clear()
    await service.load("a", source)
    await service.load("b", f"file://{tmp_path}/nothing")
    watcher = watching("a", "b", until_settled=True)
    await watcher.until(lambda events: S.FAILED in watcher.states("b"))
    assert not watcher.task.done()
    engine.may_read.set()
    await asyncio.wait_for(watcher.task, 20)
    assert watcher.states("a")[-1] is S.READY
    again = watching("a", "b", until_settled=True)
    await asyncio.wait_for(again.task, 20)
    assert [type(event) for event in again.events] == [AdapterRecord, AdapterRecord, SnapshotComplete]


async def test_until_settled_needs_names(service: AdaptersService) -> None:
    with refused(Reason.INVALID_FIELD):
        service.watch(until_settled=True)


async def test_a_watch_that_is_left_is_forgotten(service: AdaptersService, source: str, watching: Any) -> None:
    watcher = watching()
    await watcher.until(bool)
    assert len(service._registry._events) == 1
    watcher.task.cancel()
    await asyncio.gather(watcher.task, return_exceptions=True)
    assert service._registry._events == set()
