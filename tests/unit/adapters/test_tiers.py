"""Slots, memory and disk of one engine: who gets a slot, who gives one up, and what is left at the end."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.adapters.types import AdapterTier
from argosy_services.errors import ArgosyError, Reason

SLOTS = 2
# Bytes of one adapter of `write_adapter` in float32.
SIZE = 4 * 2 * (2 * (8 + 8) + 2 * (8 + 12))
T = AdapterTier


@pytest.fixture
async def tiers(engine: Any) -> AsyncIterator[AdapterTiers]:
    tiers = AdapterTiers(engine, slots=SLOTS, memory_bytes=2 * SIZE)
    yield tiers
    engine.release()
    for key in tiers.keys:
        await tiers.remove(key)
    assert engine.inside == {}
    assert tiers.in_memory_bytes == 0
    await asyncio.to_thread(tiers.close)


@pytest.fixture
def directory(write_adapter: Any) -> Path:
    return write_adapter()


async def add(tiers: AdapterTiers, directory: Path, *keys: str, pinned: bool = False) -> None:
    for key in keys:
        await tiers.add(key, directory, await tiers.read(directory), pinned=pinned)


async def use(tiers: AdapterTiers, *keys: str) -> None:
    for key in keys:
        async with tiers.hold(key):
            pass


def calls(engine: Any, name: str) -> list[str]:
    return [key for call, key in engine.calls if call == name]


async def test_adapters_take_free_slots_and_then_memory_and_disk(tiers: AdapterTiers, directory: Path) -> None:
    await add(tiers, directory, *"abcdefg")
    assert [tiers.tier(key) for key in "ab"] == [T.SLOT, T.SLOT]
    cold = [tiers.tier(key) for key in "cdefg"]
    assert sorted(cold, key=str) == [T.DISK] * 3 + [T.MEMORY] * 2
    assert tiers.in_memory_bytes == 2 * SIZE
    assert tiers.tier("nobody") is None


async def test_the_slot_of_the_least_recently_held_is_taken(tiers: AdapterTiers, engine: Any, directory: Path) -> None:
    await add(tiers, directory, *"abc")
    await use(tiers, "b", "a", "c")
    assert tiers.in_slots == set(engine.inside) == {"a", "c"}
    await use(tiers, "b")
    assert tiers.in_slots == set(engine.inside) == {"b", "c"}
    assert (tiers.counts.hits, tiers.counts.misses, tiers.counts.evictions) == (2, 2, 2)


async def test_what_memory_keeps_is_not_read_again(tiers: AdapterTiers, engine: Any, directory: Path) -> None:
    await add(tiers, directory, *"abc")
    reads = len(calls(engine, "read"))
    await use(tiers, *"cacbca")
    assert len(calls(engine, "read")) == reads
    await add(tiers, directory, *"defg")
    reads = len(calls(engine, "read"))
    await use(tiers, *"abcdefg")
    assert len(calls(engine, "read")) > reads


async def test_held_ones_stay_and_the_next_waits_for_whoever_ends_first(
    tiers: AdapterTiers, engine: Any, directory: Path
) -> None:
    await add(tiers, directory, *"abc")
    await tiers.acquire("a")
    await tiers.acquire("b")
    waiting = asyncio.create_task(tiers.acquire("c"))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await asyncio.wait_for(tiers.acquire("a"), 1)  # whatever has its adapter does not stand in the line
    tiers.release("a")
    tiers.release("b")
    await asyncio.wait_for(waiting, 5)
    assert set(engine.inside) == {"a", "c"}
    for key in ("a", "c"):
        tiers.release(key)


async def test_popular_adapters_do_not_keep_others_out(tiers: AdapterTiers, engine: Any, directory: Path) -> None:
    await add(tiers, directory, *"abc")
    over = False

    async def popular(key: str) -> None:
        while not over:
            async with tiers.hold(key):
                await asyncio.sleep(0.01)

    users = [asyncio.create_task(popular(key)) for key in "ab" for _ in range(4)]
    await asyncio.sleep(0.02)
    for _ in range(3):
        # All slots are held at any moment, by several users in turn.
        await asyncio.wait_for(use(tiers, "c"), 2)
        await asyncio.wait_for(use(tiers, *"ab"), 2)
    over = True
    await asyncio.gather(*users)
    assert len(engine.inside) == SLOTS


async def test_one_that_was_closed_in_vain_is_open_again(tiers: AdapterTiers, directory: Path) -> None:
    await add(tiers, directory, *"abc")
    await tiers.acquire("a")
    await tiers.acquire("b")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tiers.acquire("c"), 0.3)
    # Nobody waits any more: whoever asks for the others goes on at once, although they are held.
    await asyncio.wait_for(use(tiers, *"ab"), 1)
    for key in "ab":
        tiers.release(key)


async def test_whoever_gives_up_waiting_leaves_the_line(tiers: AdapterTiers, directory: Path) -> None:
    await add(tiers, directory, *"abcd")
    await tiers.acquire("a")
    await tiers.acquire("b")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(tiers.acquire("c"), 0.02)
    behind = asyncio.create_task(tiers.acquire("d"))
    tiers.release("a")
    await asyncio.wait_for(behind, 5)
    assert tiers.tier("c") is not T.SLOT
    for key in ("b", "d"):
        tiers.release(key)


async def test_whoever_gives_up_while_the_engine_takes_its_adapter_breaks_nothing(
    tiers: AdapterTiers, engine: Any, directory: Path
) -> None:
    await add(tiers, directory, *"abc")
    engine.holding = True
    giving_up = asyncio.create_task(tiers.acquire("c"))
    while not engine.held:
        await asyncio.sleep(0.001)
    giving_up.cancel()
    await asyncio.sleep(0.01)
    engine.release()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    for _ in range(3):
        await asyncio.wait_for(use(tiers, *"abc"), 5)
    assert len(engine.inside) == SLOTS


async def test_pinned_ones_stay_and_one_slot_is_for_the_others(
    tiers: AdapterTiers, engine: Any, directory: Path
) -> None:
    await add(tiers, directory, "a", "b")
    await add(tiers, directory, "p", pinned=True)
    await use(tiers, *"abab")
    assert tiers.tier("p") is T.SLOT
    with pytest.raises(ArgosyError) as caught:
        await add(tiers, directory, "q", pinned=True)
    assert caught.value.reason is Reason.ADAPTER_SLOTS_FULL
    assert "q" not in tiers
    await tiers.remove("p")
    await add(tiers, directory, "q", pinned=True)
    assert tiers.tier("q") is T.SLOT


async def test_a_pinned_one_keeps_its_weights_until_it_is_in_its_slot(
    tiers: AdapterTiers, engine: Any, directory: Path
) -> None:
    await add(tiers, directory, *"abcd")
    await use(tiers, *"abcd")
    # The one that gives up its slot fills the memory, and all were used later than one that is new.
    await add(tiers, directory, "p", pinned=True)
    assert tiers.tier("p") is T.SLOT
    assert "p" in engine.inside


async def test_of_two_that_come_at_once_one_has_the_last_slot(
    tiers: AdapterTiers, engine: Any, directory: Path
) -> None:
    await add(tiers, directory, *"abcd")
    await use(tiers, *"abcd")
    await tiers.remove("c")
    await use(tiers, "a", "b", "a")
    await tiers.remove("b")
    weights = await tiers.read(directory)
    await asyncio.gather(*(tiers.add(key, directory, weights, pinned=False) for key in "ef"))
    assert tiers.in_slots == set(engine.inside)
    assert "a" in engine.inside, "nobody gave up a slot for what nobody asked for"
    assert len(engine.inside) == SLOTS


async def test_one_that_is_removed_is_waited_for_no_more(tiers: AdapterTiers, directory: Path) -> None:
    await add(tiers, directory, *"abc")
    await tiers.acquire("a")
    await tiers.acquire("b")
    waiting = asyncio.create_task(tiers.acquire("c"))
    await asyncio.sleep(0.01)
    await tiers.remove("c")
    with pytest.raises(ArgosyError) as caught:
        await asyncio.wait_for(waiting, 5)
    assert caught.value.reason is Reason.ADAPTER_NOT_READY
    for key in ("a", "b", "c"):
        tiers.release(key)


async def test_files_that_cannot_be_read_any_more_fail_who_asks_and_nobody_else(
    tiers: AdapterTiers, write_adapter: Any, directory: Path
) -> None:
    lost = write_adapter("lost")
    await add(tiers, directory, "a", "b")
    await tiers.add("lost", lost, pinned=False)
    (lost / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArgosyError) as caught:
        await use(tiers, "lost")
    assert caught.value.reason is Reason.ADAPTER_INVALID
    await asyncio.wait_for(use(tiers, *"abab"), 5)


async def test_many_users_at_random_have_their_adapter_in_the_engine_while_they_hold_it(
    tiers: AdapterTiers, engine: Any, directory: Path
) -> None:
    rng = random.Random(5)
    numbers = itertools.count()
    present: set[str] = set()

    async def user() -> None:
        for _ in range(60):
            key = rng.choice("abcdef")
            try:
                async with asyncio.timeout(rng.choice((0.001, 5))), tiers.hold(key):
                    assert key in engine.inside or key not in present
                    await asyncio.sleep(rng.random() / 500)
                    assert key in engine.inside or key not in present
            except TimeoutError:
                pass
            except ArgosyError as error:
                assert error.reason is Reason.ADAPTER_NOT_READY  # noqa: PT017

    async def owner() -> None:
        for _ in range(40):
            key = rng.choice("abcdef")
            if key in present:
                present.discard(key)
                await tiers.remove(key)
            else:
                present.add(key)
                await add(tiers, directory, key)
            next(numbers)
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        group.create_task(owner())
        for _ in range(8):
            group.create_task(user())
    assert len(engine.inside) <= SLOTS
    assert set(engine.inside) == tiers.in_slots
