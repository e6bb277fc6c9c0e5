"""Who goes next: by priority, then by tenant, then by arrival, and nobody never."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy_services.engine.base import HIGHEST_PRIORITY, LOWEST_PRIORITY, Request
from argosy_services.engine.torch_engine.fair_queue import PASSES, FairQueue
from argosy_services.engine.torch_engine.sequence import Sequence

PRIORITIES = st.integers(LOWEST_PRIORITY, HIGHEST_PRIORITY)


def sequence(name: str, tenant: str = "", priority: int = 0, prompt: int = 1) -> Sequence:
    return Sequence.of(Request(name, [1] * prompt, 1, tenant=tenant, priority=priority))


def queue_of(*sequences: Sequence) -> FairQueue:
    queue = FairQueue()
    for item in sequences:
        queue.add(item)
    return queue


def take(queue: FairQueue, charge: int = 0) -> str:
    first = queue.first()
    assert first is not None
    queue.take(first)
    queue.charge(first.request.tenant, charge)
    return first.request.id


def test_priority_goes_before_everything_and_arrival_before_nothing() -> None:
    queue = queue_of(
        sequence("low", priority=-2),
        sequence("first"),
        sequence("second"),
        sequence("high", priority=1),
        sequence("highest", priority=2),
    )
    assert [take(queue) for _ in range(5)] == ["highest", "high", "first", "second", "low"]
    assert queue.first() is None


def test_the_least_served_tenant_goes_first() -> None:
    queue = queue_of(*(sequence(f"a{at}", "a") for at in range(4)), *(sequence(f"b{at}", "b") for at in range(4)))
    # b pays three times as much for each of its sequences.
    order = []
    for _ in range(8):
        first = queue.first()
        assert first is not None
        order.append(take(queue, charge=30 if first.request.tenant == "b" else 10))
    assert order == ["a0", "b0", "a1", "a2", "a3", "b1", "b2", "b3"]


def test_nobody_saves_up_service_while_away() -> None:
    queue = queue_of(*(sequence(f"a{at}", "a") for at in range(50)))
    for _ in range(40):
        take(queue, charge=10)
    for at in range(10):
        queue.add(sequence(f"b{at}", "b"))
    order = [take(queue, charge=10)[0] for _ in range(20)]
    assert order.count("b") == 10
    assert all(left != right for left, right in pairwise(order))


def test_who_comes_when_nobody_waits_begins_where_the_last_one_left() -> None:
    queue = queue_of(sequence("a", "a"))
    take(queue, charge=100)
    queue.add(sequence("b", "b"))
    assert queue.served("b") == 100
    take(queue, charge=10)
    queue.add(sequence("c", "c"))
    assert queue.served("c") == 110
    # Debts are kept.
    queue.charge("a", 1000)
    queue.add(sequence("a", "a"))
    assert queue.served("a") == 1100


def test_what_was_put_back_goes_before_the_later_ones_of_its_tenant() -> None:
    first, second, third = (sequence(name, "a") for name in ("first", "second", "third"))
    queue = queue_of(first, second, third)
    queue.take(first)
    queue.take(second)
    queue.add(second)
    queue.add(first)
    assert [take(queue) for _ in range(3)] == ["first", "second", "third"]


def test_who_has_waited_longest_has_its_turn_and_keeps_it() -> None:
    low = sequence("low", priority=-1)
    queue = queue_of(low)
    for at in range(PASSES):
        queue.add(sequence(str(at), priority=1))
        assert take(queue) == str(at)
    queue.add(sequence("impatient", priority=2))
    assert queue.first() is low
    queue.take(low)
    # It is never put back for one of those that it was let in before.
    assert low.rank == HIGHEST_PRIORITY
    queue.add(low)
    assert [take(queue), take(queue)] == ["low", "impatient"]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), PRIORITIES), min_size=1, max_size=30),
    st.lists(st.tuples(st.sampled_from("abc"), PRIORITIES), min_size=1, max_size=6),
)
def test_nobody_waits_for_ever(waiting: list[tuple[str, int]], flood: list[tuple[str, int]]) -> None:
    """However much comes after them, those that are here get their place."""
    here = [sequence(str(at), *given) for at, given in enumerate(waiting)]
    queue = queue_of(*here)
    left = set(here)
    for step in range(2000):
        if not left:
            return
        # Two come for each that goes.
        queue.add(sequence("flood", *flood[step % len(flood)]))
        queue.add(sequence("flood", *flood[(step + 1) % len(flood)]))
        first = queue.first()
        assert first is not None
        queue.take(first)
        queue.charge(first.request.tenant, 10)
        left.discard(first)
    pytest.fail(f"{len(left)} still wait")


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), PRIORITIES, st.integers(1, 9), st.booleans())), st.data())
def test_its_books_are_right(loads: list[tuple[str, int, int, bool]], data: st.DataObject) -> None:
    queue = FairQueue()
    live: set[Sequence] = set()
    for tenant, priority, prompt, removes in loads:
        item = sequence("x", tenant, priority, prompt)
        queue.add(item)
        live.add(item)
        if removes:
            gone = data.draw(st.sampled_from(sorted(live, key=lambda item: item.number)))
            queue.remove(gone)
            live.discard(gone)
        assert set(queue) == live
        assert len(queue) == len(live)
        assert queue.tokens == sum(item.pending for item in live)
        assert all(item in queue for item in live)
    while (first := queue.first()) is not None:
        if queue._passes < PASSES:
            assert first.rank == max(other.rank for other in live)
        same = [other for other in live if (other.rank, other.request.tenant) == (first.rank, first.request.tenant)]
        assert first is min(same, key=lambda other: other.number)
        queue.take(first)
        live.discard(first)
    assert not live
    assert queue.tokens == 0
