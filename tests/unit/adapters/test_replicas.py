"""What outlives a service: restarts, and several replicas over one database."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.unit.adapters.asking import CONVERGE_S, ready, speaks, states, within

from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.types import AdapterState
from argosy_services.errors import ArgosyError, Reason

S = AdapterState


@pytest.fixture
def source(write_adapter: Any) -> str:
    return f"file://{write_adapter()}"


@pytest.fixture
def other(write_adapter: Any) -> str:
    return f"file://{write_adapter('other', options={'lora_alpha': 8})}"


async def test_what_was_ready_comes_back_by_itself_without_its_source(
    start_service: Any, source: str, tmp_path: Path, engine: Any
) -> None:
    async with start_service() as first:
        version = await ready(first, source)
    shutil.rmtree(tmp_path / "adapter")
    engine.inside.clear()
    async with start_service() as second:
        # Its requests wait for it instead of failing.
        assert await asyncio.wait_for(speaks(second, "a"), CONVERGE_S) == version
        assert states(second) == {"a": S.READY}
        await second.unload("a")
    async with start_service() as third:
        assert states(third) == {}
        assert list((tmp_path / "cache").rglob("adapter_*")) == []


async def test_what_had_failed_is_failed_and_what_was_half_done_is_resumed(
    start_service: Any, source: str, tmp_path: Path, engine: Any
) -> None:
    async with start_service() as first:
        await first.load("bad", f"file://{tmp_path}/nothing")
        async for _ in first.watch(["bad"], until_settled=True):
            pass
        engine.may_read.clear()
        await first.load("a", source)
        await within(lambda: first.get("a").state is S.VALIDATING)
    async with start_service() as second:
        await within(lambda: states(second).get("a") is S.READY)
        record = second.get("bad")
        assert record.state is S.FAILED
        assert record.failure is not None
        assert record.failure.reason == Reason.ADAPTER_INVALID


async def test_an_adapter_of_a_model_that_is_served_no_more_can_be_unloaded(
    start_service: Any, source: str, tmp_path: Path
) -> None:
    async with start_service() as first:
        await first.load("a", source, "other")
        await within(lambda: states(first) == {"a": S.READY})
    async with start_service(models=["small"]) as second:
        assert states(second) == {}
        for _ in range(2):
            record = await second.unload("a")
            assert (record.state, record.base_model) == (S.UNLOADED, "other")
        assert list((tmp_path / "cache").rglob("adapter_*")) == []
        await ready(second, source)


async def test_replicas_agree(start_service: Any, source: str, other: str, tmp_path: Path) -> None:
    async with start_service() as one, start_service(replica=True) as two:
        first = await ready(one, source)
        second = await ready(two, other, "b")
        await within(lambda: states(one) == states(two) == {"a": S.READY, "b": S.READY})
        assert one.get("b").version == second
        await two.unload("a", 0)
        await within(lambda: states(one)["a"] is S.UNLOADED)
        # A name is used again while the other replica has not seen the unload.
        await one.unload("b", 0)
        await within(lambda: states(one)["b"] is S.UNLOADED)
        await one.load("b", source)
        await within(lambda: states(two)["b"] is S.READY and two.get("b").version == first)


async def test_a_replica_that_drains_keeps_its_users_while_others_are_gone(start_service: Any, source: str) -> None:
    async with start_service() as one, start_service(replica=True) as two:
        await ready(one, source)
        await within(lambda: states(two) == {"a": S.READY})
        async with two.lease("a", lambda: None):
            await one.unload("a", 30)
            await within(lambda: states(one)["a"] is S.UNLOADED)
            await within(lambda: states(two)["a"] is S.DRAINING)
        await within(lambda: states(two)["a"] is S.UNLOADED)


async def test_a_source_that_changed_between_two_replicas_is_never_served_as_the_same(
    start_service: Any, source: str, other: str, tmp_path: Path
) -> None:
    async with start_service() as one:
        await ready(one, source)
    # The next start finds other files: those that were kept are gone, and the source was changed.
    for kept in (tmp_path / "cache").glob("*/1"):
        shutil.rmtree(kept)
    shutil.copy(tmp_path / "other" / "adapter_config.json", tmp_path / "adapter" / "adapter_config.json")
    async with start_service() as two:
        await within(lambda: states(two) == {"a": S.FAILED})
        failure = two.get("a").failure
        assert failure is not None
        assert "files have changed" in failure.message


@pytest.mark.parametrize("damage", [b"", b"half of it"])
async def test_kept_files_that_were_damaged_are_fetched_again(
    start_service: Any, source: str, tmp_path: Path, damage: bytes
) -> None:
    async with start_service() as one:
        version = await ready(one, source)
    (kept,) = (tmp_path / "cache").glob("*/1/adapter_model.safetensors")
    kept.write_bytes(damage)
    async with start_service() as two:
        assert await asyncio.wait_for(speaks(two, "a"), CONVERGE_S) == version
        assert kept.stat().st_size > len(damage)


async def test_a_call_that_is_repeated_does_nothing_twice(service: AdaptersService, source: str, other: str) -> None:
    first = await ready(service, source)
    second = await ready(service, other, "b")
    loaded = await service.load("c", source, request_id="r1")
    assert (await service.load("c", source, request_id="r1")).created == loaded.created
    with pytest.raises(ArgosyError) as caught:
        await service.load("d", source, request_id="r1")
    assert caught.value.reason is Reason.INVALID_FIELD
    await service.load("d", source, tenant="somebody else", request_id="r1")
    for weights in ({"a": 1}, {"b": 1}, {"a": 1, "b": 1}):
        await service.set_alias("x@prod", weights)
    for _ in range(3):
        back = await service.roll_back("x@prod", request_id="r2")
    assert [target.version for target in back.targets] == [second]
    assert await speaks(service, "x@prod") == second != first
    await service.unload("c", 0, request_id="r3")
    await within(lambda: service.get("c").state is S.UNLOADED)
    # The answer to the first load was lost, and its caller asks again: it does not come back.
    assert (await service.load("c", source, request_id="r1")).state is S.UNLOADED
    await service.load("c", source)
    assert (await service.unload("c", 0, request_id="r3")).state is not S.DRAINING


async def test_requests_name_adapters_versions_and_aliases(service: AdaptersService, source: str, other: str) -> None:
    first, second = await ready(service, source), await ready(service, other, "b")
    await service.set_alias("x@prod", {"a": 1})
    assert [await speaks(service, name) for name in ("a", first, "x@prod", "b", second)] == [first] * 3 + [second] * 2
    await service.set_alias("x@prod", {second: 1})
    assert await speaks(service, "x@prod") == second
    assert [target.version for target in (await service.roll_back("x@prod")).targets] == [first]
    assert await speaks(service, "x@prod") == first
    for name, reason in {
        "x@nothing": Reason.ALIAS_NOT_FOUND,
        "0" * 64: Reason.ADAPTER_NOT_FOUND,
        "nobody": Reason.ADAPTER_NOT_FOUND,
    }.items():
        with pytest.raises(ArgosyError) as caught:
            await speaks(service, name)
        assert caught.value.reason is reason


async def test_weights_share_requests_and_keys_stick(service: AdaptersService, source: str, other: str) -> None:
    first, second = await ready(service, source), await ready(service, other, "b")
    await service.set_alias("x@prod", {"a": 9, "b": 1})
    drawn = [await speaks(service, "x@prod") for _ in range(1_000)]
    assert 50 < drawn.count(second) < 160
    keys = [f"user-{number}" for number in range(400)]
    before = {key: await speaks(service, "x@prod", key) for key in keys}
    assert before == {key: await speaks(service, "x@prod", key) for key in keys}
    assert 15 < list(before.values()).count(second) < 80
    await service.set_alias("x@prod", {"a": 1, "b": 1})
    after = {key: await speaks(service, "x@prod", key) for key in keys}
    assert all(after[key] == second for key in keys if before[key] == second), "nobody goes back in a roll-out"
    await service.set_alias("x@prod", {"a": 1, "b": 0})
    assert {await speaks(service, "x@prod") for _ in range(50)} == {first}


async def test_a_replica_takes_an_alias_over_once_its_versions_are_there(
    start_service: Any, source: str, other: str, engine: Any
) -> None:
    async with start_service() as one, start_service(replica=True) as two:
        first = await ready(one, source)
        await one.set_alias("x@prod", {"a": 1})
        await within(lambda: two._aliases._in_force.keys() == {"x@prod"})
        second = await ready(one, other, "b")
        await within(lambda: "b" in states(two))
        await one.set_alias("x@prod", {"b": 1})
        assert await speaks(one, "x@prod") == second
        seen = []
        give_up = time.monotonic() + CONVERGE_S
        while seen[-1:] != [second]:
            assert time.monotonic() < give_up
            seen.append(await speaks(two, "x@prod"))
            await asyncio.sleep(0.01)
        assert seen == sorted(seen, key=[first, second].index), "once taken over, it stays"
        await one.roll_back("x@prod")
        await one.delete_alias("x@prod")
        await within(lambda: not two._aliases._in_force)


async def test_requests_that_name_an_alias_wait_for_its_version_after_a_restart(
    start_service: Any, source: str, engine: Any
) -> None:
    async with start_service() as first:
        version = await ready(first, source)
        await first.set_alias("x@prod", {"a": 1})
    engine.may_read.clear()
    async with start_service() as second:
        asked = asyncio.create_task(speaks(second, "x@prod"))
        await asyncio.sleep(0.05)
        assert not asked.done(), "it waits"
        engine.may_read.set()
        assert await asyncio.wait_for(asked, CONVERGE_S) == version


async def test_a_version_that_fails_here_does_not_take_the_alias_from_the_others(
    start_service: Any, source: str, other: str, tmp_path: Path
) -> None:
    async with start_service() as first:
        version = await ready(first, source)
        await ready(first, other, "b")
        await first.set_alias("x@prod", {"a": 1, "b": 1})
    shutil.rmtree(tmp_path / "other")
    for kept in (tmp_path / "cache").glob("*/2"):
        shutil.rmtree(kept)
    async with start_service() as second:
        await within(lambda: states(second) == {"a": S.READY, "b": S.FAILED})
        answers: set[str] = set()
        for number in range(40):
            try:
                answers.add(await speaks(second, "x@prod", f"user-{number}"))
            except ArgosyError as error:
                answers.add(error.reason)
        assert answers == {version, Reason.ADAPTER_NOT_READY}


async def test_a_former_meaning_of_which_nothing_is_left_gives_way_to_one_that_is_coming(
    start_service: Any, source: str, other: str
) -> None:
    async with start_service() as one, start_service(replica=True) as two:
        await ready(one, source)
        await one.set_alias("x@prod", {"a": 1})
        await within(lambda: states(two) == {"a": S.READY})
        slow = two._residences["small"]._engine
        slow.may_read.clear()
        try:
            await one.load("b", other)
            await within(lambda: "b" in states(two))
            second = await ready(one, other, "b")
            await one.set_alias("x@prod", {"b": 1})
            await one.unload("a", 0)
            await within(lambda: states(two)["a"] is S.UNLOADED)
            asked = asyncio.create_task(speaks(two, "x@prod"))
            await asyncio.sleep(0.05)
            assert not asked.done(), "it waits"
        finally:
            slow.may_read.set()
        assert await asyncio.wait_for(asked, CONVERGE_S) == second


async def test_a_twin_that_failed_does_not_hide_one_that_is_coming(
    start_service: Any, source: str, other: str, engine: Any, tmp_path: Path
) -> None:
    async with start_service() as first:
        version = await ready(first, source)
        shutil.copytree(tmp_path / "adapter", tmp_path / "copy")
        await ready(first, f"file://{tmp_path}/copy", "twin")
    shutil.rmtree(tmp_path / "adapter")
    for kept in (tmp_path / "cache").glob("*/1"):
        shutil.rmtree(kept)
    engine.may_read.clear()
    async with start_service() as second:
        await within(lambda: states(second) == {"a": S.FAILED, "twin": S.FETCHING})
        asked = asyncio.create_task(speaks(second, version))
        await asyncio.sleep(0.02)
        engine.may_read.set()
        assert await asyncio.wait_for(asked, CONVERGE_S) == version


async def test_what_an_alias_points_at_is_not_unloaded(service: AdaptersService, source: str, other: str) -> None:
    await ready(service, source)
    await ready(service, other, "b")
    await service.set_alias("x@prod", {"a": 1})
    with pytest.raises(ArgosyError) as caught:
        await service.unload("a")
    assert caught.value.reason is Reason.ADAPTER_IN_USE
    assert caught.value.metadata == {"adapter": "a", "alias": "x@prod"}
    assert service.get("a").state is S.READY
    await service.set_alias("x@prod", {"b": 1})
    await service.unload("a", 0)
    await within(lambda: service.get("a").state is S.UNLOADED)
    with pytest.raises(ArgosyError) as caught:
        await service.roll_back("x@prod")
    assert caught.value.reason is Reason.ADAPTER_NOT_READY
    await service.delete_alias("x@prod")
    await service.unload("b", 0)
    with pytest.raises(ArgosyError) as caught:
        await service.roll_back("x@prod")
    assert caught.value.reason is Reason.ALIAS_NOT_FOUND


@pytest.mark.parametrize(
    ("alias", "targets", "reason"),
    [
        ("prod", {"a": 1}, Reason.INVALID_FIELD),
        ("x@", {"a": 1}, Reason.INVALID_FIELD),
        ("x@y@z", {"a": 1}, Reason.INVALID_FIELD),
        ("x@prod", {}, Reason.INVALID_FIELD),
        ("x@prod", {"a": 0}, Reason.INVALID_FIELD),
        ("x@prod", {"a": 1_000_001}, Reason.INVALID_FIELD),
        ("x@prod", {"a": 1, "twin": 1}, Reason.INVALID_FIELD),
        ("x@prod", {"nobody": 1}, Reason.ADAPTER_NOT_FOUND),
        ("x@prod", {"0" * 64: 1}, Reason.ADAPTER_NOT_FOUND),
    ],
)
async def test_an_alias_that_cannot_be_is_refused(
    service: AdaptersService, source: str, alias: str, targets: dict[str, int], reason: Reason
) -> None:
    await ready(service, source)
    await ready(service, source, "twin")
    with pytest.raises(ArgosyError) as caught:
        await service.set_alias(alias, targets)
    assert caught.value.reason is reason
    assert await service.aliases() == ()


async def test_requests_go_on_and_changes_are_refused_while_the_database_is_away(
    start_service: Any, source: str, tmp_path: Path
) -> None:
    async with start_service() as service:
        version = await ready(service, source)
        database = service._store._database
        await database.write(lambda connection: connection.execute(text("ALTER TABLE adapters RENAME TO away")).close())
        with pytest.raises(Exception, match="no such table"):
            await service.load("b", source)
        assert await speaks(service, "a") == version
        await database.write(lambda connection: connection.execute(text("ALTER TABLE away RENAME TO adapters")).close())
        await ready(service, source, "b")
