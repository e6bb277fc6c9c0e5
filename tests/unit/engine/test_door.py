"""Who is let in, and when the others are told to come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy_services.engine.base import Request
from argosy_services.engine.door import Door, Limits
from argosy_services.errors import ArgosyError, Reason

ROOMY = 1_000_000


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(clock: Clock) -> Door:
    return Door(clock)


def request(name: str, prompt: int = 1, **more: Any) -> Request:
    return Request(name, [1] * prompt, 1, **more)


def refused(door: Door, asked: Request, limits: Limits) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        door.enter(asked, limits)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s is not None
    return caught.value


def test_sequences_are_limited_until_one_leaves(door: Door) -> None:
    limits = Limits(2, ROOMY)
    door.enter(request("a"), limits)
    door.enter(request("b"), limits)
    error = refused(door, request("c"), limits)
    assert error.metadata == {"limit": "2", "value": "2"}
    door.leave("a")
    door.leave("a")
    door.enter(request("c"), limits)
    refused(door, request("d"), limits)
    assert len(door) == 2


def test_waiting_prompts_are_limited_until_they_run(door: Door) -> None:
    limits = Limits(ROOMY, 100)
    door.enter(request("only one, however long", 500), limits)
    error = refused(door, request("b", 1), limits)
    assert (error.metadata, "tokens" in error.message) == ({"limit": "100", "value": "500"}, True)
    door.start("only one, however long")
    door.start("only one, however long")
    door.enter(request("b", 60), limits)
    refused(door, request("c", 41), limits)
    door.enter(request("c", 40), limits)
    door.leave("b")
    door.enter(request("d", 60), limits)


def test_what_goes_on_from_another_engine_is_never_refused(door: Door) -> None:
    door.enter(request("a"), Limits(1, 0))
    refused(door, request("b"), Limits(1, 0))
    door.enter(request("c", generated=(1,)), Limits(1, 0))


def test_a_backlog_of_low_priority_refuses_nobody_above_it(door: Door) -> None:
    limits = Limits(2, 10)
    for name in "ab":
        door.enter(request(name, 5, priority=-1), limits)
    refused(door, request("c", 5, priority=-1), limits)
    for name in "de":
        door.enter(request(name, 5), limits)
    refused(door, request("f", 5), limits)
    # What goes before counts.
    door.leave("a")
    refused(door, request("g", 5, priority=-1), limits)


def test_who_has_less_than_a_share_is_let_in(door: Door) -> None:
    limits = Limits(6, ROOMY)
    for at in range(6):
        door.enter(request(f"a{at}", tenant="a"), limits)
    for at in range(3):
        door.enter(request(f"b{at}", tenant="b"), limits)
    refused(door, request("b3", tenant="b"), limits)
    for at in range(2):
        door.enter(request(f"c{at}", tenant="c"), limits)
    refused(door, request("c2", tenant="c"), limits)
    refused(door, request("a6", tenant="a"), limits)
    assert len(door) == 6 * (1 + 1 / 2 + 1 / 3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=120), st.integers(0, 9))
def test_limits_are_exceeded_by_little_and_books_are_right(actions: list[tuple[str, bool]], limit: int) -> None:
    door, live = Door(Clock()), []
    for at, (tenant, enters) in enumerate(actions):
        if enters:
            own = sum(name[0] == tenant for name in live)
            try:
                door.enter(request(f"{tenant}{at}", tenant=tenant), Limits(limit, ROOMY))
            except ArgosyError:
                assert len(live) >= limit
                assert own >= limit // len({name[0] for name in live} | {tenant})
            else:
                live.append(f"{tenant}{at}")
        elif live:
            door.leave(live.pop(at % len(live)))
        assert len(door) == len(live) <= limit * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5)
    for name in live:
        door.leave(name)
    assert (door._sequences.total, door._sequences.tenants) == ({}, {})
    assert (door._tokens.total, door._tokens.tenants, door._prompts) == ({}, {}, {})


def test_callers_come_back_at_the_pace_at_which_places_become_free(door: Door, clock: Clock) -> None:
    limits = Limits(4, ROOMY)
    for at in range(4):
        door.enter(request(str(at)), limits)
    assert refused(door, request("x"), limits).retry_after_s == 1.0
    # One leaves and one comes every half second.
    for at in range(40):
        clock.now += 0.5
        door.leave(str(at))
        door.enter(request(str(at + 4)), limits)
    delays = [refused(door, request("x"), limits).retry_after_s for _ in range(3)]
    assert delays == pytest.approx([0.5, 1.0, 1.5], rel=0.05)
    clock.now += 1.0
    assert refused(door, request("x"), limits).retry_after_s == pytest.approx(1.1, rel=0.1)
    for _ in range(500):
        refused(door, request("x"), limits)
    assert refused(door, request("x"), limits).retry_after_s == 60.0


def test_prompts_come_back_at_the_pace_at_which_prompts_are_read(door: Door, clock: Clock) -> None:
    limits = Limits(ROOMY, 1000)
    door.enter(request("0", 1000), limits)
    for at in range(40):
        clock.now += 0.5
        door.start(str(at))
        door.enter(request(str(at + 1), 1000), limits)
    assert refused(door, request("x", 500), limits).retry_after_s == pytest.approx(0.25, rel=0.05)


def test_idle_time_does_not_slow_the_pace(door: Door, clock: Clock) -> None:
    limits = Limits(1, ROOMY)
    for at in range(20):
        door.enter(request(str(at)), limits)
        clock.now += 0.5
        door.leave(str(at))
        clock.now += 1000.0
    door.enter(request("last"), limits)
    assert refused(door, request("x"), limits).retry_after_s == pytest.approx(0.5, rel=0.05)


def test_sequences_of_one_call_are_no_rivals(door: Door) -> None:
    limits = Limits(3, 100)
    for at in range(5):
        door.enter(request(f"a-{at}", 90, call="a"), limits)
    refused(door, request("b-0", 1, call="b"), limits)
    refused(door, request("c", 1), limits)
    for at in range(5):
        door.leave(f"a-{at}")
    door.enter(request("b-0", 60, call="b"), limits)
    refused(door, request("a-5", 60, call="a"), limits)
