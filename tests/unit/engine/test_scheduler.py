"""The scheduler's promises, on drawn loads: nobody starves, blocks are never shared or lost, budgets hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work

BLOCK = 4
BLOCKS = 12


def sequence(name: str, prompt: int, answer: int, token: int = 1, adapter: str | None = None) -> Sequence:
    return Sequence.of(Request(id=name, prompt=[token] * prompt, max_tokens=answer, adapter=adapter))


def run_step(scheduler: Scheduler) -> list[Work]:
    """One step without a model: every sequence that completes gets a token, and leaves when it has them all."""
    work = scheduler.schedule()
    for item in work:
        assert item.start == item.sequence.computed
    scheduler.advance(work)
    for item in work:
        if item.sequence.pending == 0:
            item.sequence.tokens.append(2)
            if item.sequence.generated == item.sequence.request.max_tokens:
                scheduler.remove(item.sequence)
    scheduler.check_integrity()
    return work


@given(
    loads=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 18)), min_size=1, max_size=12),
    max_batch=st.integers(1, 6),
    budget=st.integers(1, 24),
    cancels=st.sets(st.integers(0, 11)),
)
def test_every_load_finishes(loads: list[tuple[int, int]], max_batch: int, budget: int, cancels: set[int]) -> None:
    scheduler = Scheduler(BlockAllocator(BLOCKS, BLOCK), max_batch=max_batch, max_step_tokens=budget)
    # Some share their prompts, some only the tokens and not the adapter.
    sequences = [
        sequence(str(index), *load, token=1 + index % 2, adapter="a" if index % 3 else None)
        for index, load in enumerate(loads)
    ]
    for item in sequences:
        scheduler.add(item)
    for step in range(20_000):
        if not (scheduler.running or scheduler.waiting):
            break
        work = run_step(scheduler)
        assert work, "there was work to do and none was scheduled"
        assert sum(item.count for item in work) <= budget
        assert len(scheduler.running) <= max_batch
        assert len({id(item.sequence) for item in work}) == len(work)
        if step == 3:
            for index in cancels & set(range(len(sequences))):
                victim = sequences[index]
                if victim in scheduler.running or victim in scheduler.waiting:
                    scheduler.remove(victim)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.blocks.in_use == 0
    for index, item in enumerate(sequences):
        assert index in cancels or item.generated == loads[index][1]


def test_decoding_goes_before_prompts() -> None:
    scheduler = Scheduler(BlockAllocator(100, BLOCK), max_batch=4, max_step_tokens=8)
    scheduler.add(sequence("decoding", 3, 50))
    run_step(scheduler)
    scheduler.add(sequence("long prompt", 40, 1))
    for _ in range(5):
        work = run_step(scheduler)
        assert [item.sequence.request.id for item in work] == ["decoding", "long prompt"]
        assert [item.count for item in work] == [1, 7]


def test_the_youngest_is_put_back_when_blocks_run_out() -> None:
    scheduler = Scheduler(BlockAllocator(4, BLOCK), max_batch=4, max_step_tokens=64)
    old, young = sequence("old", 7, 9), sequence("young", 7, 9)
    scheduler.add(old)
    scheduler.add(young)
    order = []
    while scheduler.running or scheduler.waiting:
        run_step(scheduler)
        order += [item.request.id for item in (old, young) if item.generated == 9 and item.request.id not in order]
    assert order == ["old", "young"]
    assert scheduler.preemptions >= 1


def test_a_leaked_block_is_found() -> None:
    scheduler = Scheduler(BlockAllocator(4, BLOCK), max_batch=4, max_step_tokens=64)
    item = sequence("a", 7, 2)
    scheduler.add(item)
    scheduler.schedule()
    item.table.pop()
    with pytest.raises(RuntimeError, match="leaked"):
        scheduler.check_integrity()


def test_a_known_beginning_is_shared_and_not_computed_again() -> None:
    scheduler = Scheduler(BlockAllocator(20, BLOCK), max_batch=4, max_step_tokens=64)
    first, second = sequence("first", 10, 9), sequence("second", 10, 9)
    other = sequence("other adapter", 10, 9, adapter="a")
    scheduler.add(first)
    run_step(scheduler)
    scheduler.add(second)
    scheduler.add(other)
    run_step(scheduler)
    assert second.cached == 8
    assert second.table[:2] == first.table[:2]
    assert second.table[2] != first.table[2]
    assert other.cached == 0
    assert not set(other.table) & set(first.table)
    scheduler.remove(first)
    scheduler.check_integrity()
    assert len(second.table) == 3


def test_what_is_kept_gives_way_and_is_found_as_long_as_it_stays() -> None:
    scheduler = Scheduler(BlockAllocator(6, BLOCK), max_batch=4, max_step_tokens=64)
    # The longest unused goes first, and of one text its end: the first block of 1 outlives two other texts.
    for token, cached in ((1, 0), (1, 8), (2, 0), (3, 0), (1, 4), (1, 8)):
        item = sequence(f"{token}", 11, 1, token=token)
        scheduler.add(item)
        run_step(scheduler)
        assert item.cached == cached
        assert scheduler.blocks.in_use == 0


def test_prefixes_are_not_shared_when_told_not_to() -> None:
    scheduler = Scheduler(BlockAllocator(20, BLOCK, share_prefixes=False), max_batch=4, max_step_tokens=64)
    for _ in range(2):
        item = sequence("again", 11, 1)
        scheduler.add(item)
        run_step(scheduler)
        assert item.cached == 0
