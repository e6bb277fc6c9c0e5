"""The scheduler's promises, on drawn loads: nobody starves, blocks are never shared or lost, budgets hold."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine import scheduler as module
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.scheduler import BACKGROUND, DECODE_WEIGHT, PAUSES, Scheduler
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work

BLOCK = 4
BLOCKS = 12


def sequence(name: str, prompt: int, answer: int, token: int = 1, **more: Any) -> Sequence:
    return Sequence.of(Request(id=name, prompt=[token] * prompt, max_tokens=answer, **more))


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


LOADS = st.tuples(st.integers(1, 30), st.integers(1, 18), st.sampled_from("ab"), st.integers(-2, 2))
LIMITS = st.fixed_dictionaries(
    {"max_batch": st.integers(1, 6), "max_step_tokens": st.integers(1, 24), "spare_tokens": st.integers(0, 2)}
)


@settings(deadline=None)
@given(
    loads=st.lists(LOADS, min_size=1, max_size=12),
    at_first=st.integers(0, 12),
    limits=LIMITS,
    cancels=st.sets(st.integers(0, 11)),
)
def test_every_load_finishes(
    loads: list[tuple[int, int, str, int]], at_first: int, limits: dict[str, int], cancels: set[int]
) -> None:
    scheduler = Scheduler(BlockAllocator(BLOCKS, BLOCK), **limits)
    # Some share their prompts, some only the tokens and not the adapter or the tenant.
    sequences = [
        sequence(
            str(index),
            prompt,
            answer,
            token=1 + index % 2,
            adapter="a" if index % 3 else None,
            tenant=tenant,
            priority=priority,
        )
        for index, (prompt, answer, tenant, priority) in enumerate(loads)
    ]
    coming = list(reversed(sequences))
    for step in range(20_000):
        # Some are there at first, the others come one a step.
        while coming and len(sequences) - len(coming) < at_first + step:
            scheduler.add(coming.pop())
        if not (scheduler.running or scheduler.waiting or coming):
            break
        if not (scheduler.running or scheduler.waiting):
            continue
        work = run_step(scheduler)
        assert work, "there was work to do and none was scheduled"
        assert sum(item.count for item in work) <= limits["max_step_tokens"]
        assert len(scheduler.running) <= limits["max_batch"]
        assert len({id(item.sequence) for item in work}) == len(work)
        if step == 3:
            for index in cancels & set(range(len(sequences))):
                victim = sequences[index]
                if victim in scheduler.running or victim in scheduler.waiting:
                    scheduler.remove(victim)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.blocks.in_use == 0
    assert (len(scheduler._deadlines), scheduler.waiting_tokens) == (0, 0)
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


def batch(size: int, seconds: dict[int, float], **more: Any) -> Scheduler:
    """A scheduler of sequences that decode, who has seen steps of so many rows take so long."""
    scheduler = Scheduler(BlockAllocator(1000, BLOCK), max_batch=size + 2, max_step_tokens=64)
    for number in range(size):
        scheduler.add(sequence(f"decoding {number}", 3, 50, token=number, **more))
    run_step(scheduler)
    for rows, took in seconds.items():
        scheduler.seconds.observe(rows, took)
    return scheduler


def counts(work: list[Work]) -> list[int]:
    return [item.count for item in work]


CHEAP, DEAR = {1: 0.005, 8: 0.040}, {1: 0.030, 8: 0.040}


@pytest.mark.parametrize("seconds", [CHEAP, {}])
def test_a_short_prompt_has_a_step_of_its_own(seconds: dict[int, float]) -> None:
    scheduler = batch(8, seconds)
    scheduler.add(sequence("short", 5, 50, token=9))
    scheduler.add(sequence("as short", 4, 50, token=10))
    # The second has no room in the step of the first, and none has two such steps between the others' tokens.
    assert [counts(run_step(scheduler)) for _ in range(3)] == [[5], [1] * 9 + [4], [1] * 10]


def test_what_of_a_prompt_is_known_does_not_make_it_long() -> None:
    scheduler = batch(8, CHEAP)
    scheduler.add(sequence("decoding 0 again", 41, 1, token=99))
    assert counts(run_step(scheduler)) == [1] * 8 + [41]
    run_step(scheduler)
    scheduler.add(sequence("and again", 41, 1, token=99))
    assert counts(run_step(scheduler)) == [1]


@pytest.mark.parametrize(
    ("seconds", "prompt", "priority"),
    [(DEAR, 5, 0), (CHEAP, 9, 0), (CHEAP, 5, -1)],
    ids=["small steps are dear", "longer than the batch", "less important than the batch"],
)
def test_a_prompt_comes_with_the_batch(seconds: dict[int, float], prompt: int, priority: int) -> None:
    scheduler = batch(8, seconds)
    scheduler.add(sequence("prompt", prompt, 50, token=9, priority=priority))
    assert counts(run_step(scheduler)) == [1] * 8 + [prompt]


def test_a_prompt_comes_with_the_batch_while_a_longer_one_is_computed() -> None:
    scheduler = batch(8, CHEAP)
    scheduler.add(sequence("long", 90, 1, token=9))
    run_step(scheduler)
    scheduler.add(sequence("short", 5, 1, token=10))
    assert counts(run_step(scheduler)) == [1] * 8 + [34, 5]


def test_small_steps_that_were_dear_are_tried_again() -> None:
    scheduler = batch(8, DEAR)
    tried = 0
    for number in range(200):
        prompt = sequence(str(number), 5, 1, token=9 + number)
        scheduler.add(prompt)
        tried += counts(run_step(scheduler)) == [5]
        while prompt in scheduler.running:
            run_step(scheduler)
        for item in list(scheduler.running):
            del item.tokens[4:]  # They decode for ever.
            item.computed = 3
    assert 0 < tried < 100


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
    lost = [item.timings(time.monotonic()).preempted_s for item in (old, young)]
    assert [len(times) for times in lost] == [0, scheduler.preemptions]
    assert all(at > young.admitted - young.arrived for at in lost[1])


def test_room_to_spare_is_given_where_there_is_some() -> None:
    scheduler = Scheduler(BlockAllocator(5, BLOCK), max_batch=4, max_step_tokens=64, spare_tokens=1)
    scheduler.add(first := sequence("first", 4, 8))
    scheduler.add(second := sequence("second", 8, 8))
    run_step(scheduler)
    assert [len(one.table) for one in (first, second)] == [2, 3], "both are at the end of a block, and have one more"
    for _ in range(3):
        run_step(scheduler)
    # No block is left for the first one, which needs none yet.
    assert [len(one.table) for one in (first, second)] == [2, 3]
    assert scheduler.preemptions == 0


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


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"cache_salt": "mine"}, {"adapter": "x"}, {"tenant": "a1", "cache_salt": ""}]
)
def test_nobody_finds_what_another_namespace_has_computed(other: dict[str, str]) -> None:
    scheduler = Scheduler(BlockAllocator(20, BLOCK), max_batch=4, max_step_tokens=64)
    for of, cached in (({"tenant": "a"}, 0), (other, 0), (other, 8), ({"tenant": "a"}, 8)):
        item = sequence("x", 11, 1, **of)
        scheduler.add(item)
        run_step(scheduler)
        assert item.cached == cached


def test_a_salt_cannot_make_one_namespace_of_another() -> None:
    def namespace(adapter: str | None, tenant: str, salt: str) -> str:
        return Request("x", [1], 1, adapter=adapter, tenant=tenant, cache_salt=salt).namespace

    parts = (None, "a", "0:", "1:a", "1:", "a1:b", "11:a")
    named = {namespace(adapter, tenant or "", salt or "") for adapter in parts for tenant in parts for salt in parts}
    assert len(named) == len(parts) ** 3


def test_a_higher_priority_puts_lower_ones_back_and_no_equal_ones() -> None:
    scheduler = Scheduler(BlockAllocator(100, BLOCK), max_batch=3, max_step_tokens=64)
    running = [sequence("old", 3, 30), sequence("low", 3, 30, priority=-1), sequence("young", 3, 30)]
    for item in running:
        scheduler.add(item)
    run_step(scheduler)
    equal = sequence("equal", 3, 30)
    scheduler.add(equal)
    work = run_step(scheduler)
    assert [item.sequence.request.id for item in work] == ["old", "young", "equal"]
    assert list(scheduler.waiting) == [running[1]]
    scheduler.add(sequence("another", 3, 30))
    run_step(scheduler)
    assert scheduler.preemptions == 1
    scheduler.add(sequence("high", 3, 30, priority=1))
    run_step(scheduler)
    work = run_step(scheduler)
    # Of equals the youngest.
    assert [item.sequence.request.id for item in work] == ["old", "young", "high"]
    assert scheduler.preemptions == 2


def test_a_higher_priority_does_not_wait_for_a_long_prompt() -> None:
    scheduler = Scheduler(BlockAllocator(100, BLOCK), max_batch=4, max_step_tokens=8)
    scheduler.add(sequence("long", 80, 1))
    run_step(scheduler)
    scheduler.add(sequence("equal", 5, 1))
    assert [item.sequence.request.id for item in run_step(scheduler)] == ["long"]
    scheduler.add(sequence("high", 5, 1, token=2, priority=1))
    assert [(item.sequence.request.id, item.count) for item in run_step(scheduler)] == [("high", 5)]


def test_lower_priorities_pause_while_a_prompt_is_computed() -> None:
    scheduler = Scheduler(BlockAllocator(100, BLOCK), max_batch=8, max_step_tokens=8)
    for name, priority in (("low", -1), ("equal", 0), ("long and low", -1)):
        scheduler.add(sequence(name, 2 if priority == 0 else 3, 90, token=priority + 3, priority=priority))
    run_step(scheduler)
    scheduler.add(sequence("prompt", 12, 1, token=9))
    steps = [[(item.sequence.request.id, item.count) for item in run_step(scheduler)] for _ in range(4)]
    assert steps[:2] == [[("equal", 1), ("prompt", 7)], [("equal", 1), ("prompt", 5)]]
    assert {name for step in steps[2:] for name, _ in step} == {"low", "equal", "long and low"}


def test_the_background_takes_short_steps_after_somebody_came(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(BlockAllocator(1000, BLOCK), max_batch=3 * BACKGROUND, max_step_tokens=4 * BACKGROUND)
    low = [sequence(str(number), 2, 90, token=number + 1, priority=-1) for number in range(9)]
    for item in low:
        scheduler.add(item)
    scheduler.add(sequence("prompt", 2, 1, token=90))
    run_step(scheduler)
    scheduler.add(sequence("long and low", 30, 1, token=91, priority=-1))
    steps = [run_step(scheduler) for _ in range(3)]
    # Three at a time, in turns, and a piece of the prompt.
    assert [[item.count for item in step] for step in steps] == 3 * [[1, 1, 1, 4]]
    assert {item.sequence.request.id for step in steps for item in step} == {*map(str, range(9)), "long and low"}
    monkeypatch.setattr(module, "ALERT_S", 0.0)
    assert len(run_step(scheduler)) == 10


def test_prompts_one_after_another_do_not_stop_lower_priorities() -> None:
    scheduler = Scheduler(BlockAllocator(1000, BLOCK), max_batch=8, max_step_tokens=8)
    scheduler.add(sequence("low", 3, 90, priority=-1))
    run_step(scheduler)
    scheduler.add(sequence("prompt", 200, 1))
    names = [[item.sequence.request.id for item in run_step(scheduler)] for _ in range(2 * (PAUSES + 1))]
    assert names == 2 * [*PAUSES * [["prompt"]], ["low", "prompt"]]


def test_the_most_served_tenant_is_put_back_when_blocks_run_out() -> None:
    scheduler = Scheduler(BlockAllocator(6, BLOCK), max_batch=4, max_step_tokens=64)
    greedy, modest = sequence("greedy", 12, 12, tenant="a"), sequence("modest", 7, 9, tenant="b")
    scheduler.add(greedy)
    scheduler.add(modest)
    while not scheduler.preemptions:
        run_step(scheduler)
    assert list(scheduler.running) == [modest]
    assert list(scheduler.waiting) == [greedy]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("aab"), st.integers(1, 20), st.integers(1, 12)), min_size=20, max_size=60),
    st.integers(1, 6),
    st.integers(4, 24),
)
def test_tenants_that_both_wait_are_served_alike(
    loads: list[tuple[str, int, int]], max_batch: int, budget: int
) -> None:
    """The bound of Sheng et al. (2024), theorem 4.4, and the one prompt more of whoever has its turn."""
    scheduler = Scheduler(
        BlockAllocator(BLOCKS, BLOCK, share_prefixes=False), max_batch=max_batch, max_step_tokens=budget
    )
    for at, (tenant, prompt, answer) in enumerate(sorted(loads)):
        scheduler.add(sequence(str(at), prompt, answer, tenant=tenant))
    bound = 2 * max(20, DECODE_WEIGHT * BLOCKS * BLOCK) + 20
    while all(any(item.request.tenant == tenant for item in scheduler.waiting) for tenant in "ab"):
        run_step(scheduler)
        assert abs(scheduler.waiting.served("a") - scheduler.waiting.served("b")) <= bound


def test_a_flood_of_one_tenant_does_not_hold_up_another() -> None:
    scheduler = Scheduler(BlockAllocator(200, BLOCK), max_batch=4, max_step_tokens=64)
    for at in range(100):
        scheduler.add(sequence(f"flood {at}", 8, 8, tenant="a", token=at))
    for _ in range(20):
        run_step(scheduler)
    late = sequence("late", 8, 8, tenant="b")
    scheduler.add(late)
    steps = 0
    while late in scheduler.waiting or late in scheduler.running:
        run_step(scheduler)
        steps += 1
    # One finishes, it comes in, it says its eight tokens.
    assert steps <= 8 + 8 + 1


def test_what_is_computed_again_is_charged_once() -> None:
    scheduler = Scheduler(BlockAllocator(4, BLOCK, share_prefixes=False), max_batch=4, max_step_tokens=64)
    for name in "ab":
        scheduler.add(sequence(name, 7, 9, tenant=name))
    while scheduler.running or scheduler.waiting:
        run_step(scheduler)
    assert scheduler.preemptions
    # The last token is drawn and not computed.
    assert [scheduler.waiting.served(name) for name in "ab"] == [7 + 8 * DECODE_WEIGHT] * 2


def test_what_was_found_costs_nothing() -> None:
    scheduler = Scheduler(BlockAllocator(20, BLOCK), max_batch=4, max_step_tokens=64)
    charges = [0]
    for _ in range(2):
        scheduler.add(sequence("x", 11, 1))
        run_step(scheduler)
        charges.append(scheduler.waiting.served(""))
    assert [after - before for before, after in pairwise(charges)] == [11, 3]


def test_what_nobody_waits_for_is_given_up() -> None:
    scheduler = Scheduler(BlockAllocator(100, BLOCK), max_batch=1, max_step_tokens=64)
    running, waiting = sequence("running", 3, 30, timeout_s=20.0), sequence("waiting", 3, 30, timeout_s=10.0)
    patient, gone = sequence("patient", 3, 30), sequence("gone", 3, 30, timeout_s=1.0)
    for item in (running, waiting, patient, gone):
        scheduler.add(item)
    run_step(scheduler)
    scheduler.remove(gone)
    arrived = running.arrived
    assert scheduler.expired(arrived + 9) == []
    assert scheduler.expired(arrived + 11) == [waiting]
    scheduler.remove(waiting)
    assert scheduler.expired(arrived + 1000) == [running]
    scheduler.remove(running)
    assert list(scheduler.waiting) == [patient]
    assert scheduler.blocks.in_use == 0


def test_a_prompt_that_fills_the_cache_is_scored() -> None:
    scheduler = Scheduler(BlockAllocator(4, BLOCK), max_batch=4, max_step_tokens=64)
    scheduler.add(sequence("full", 4 * BLOCK, 0, score_from=1))
    assert [item.count for item in scheduler.schedule()] == [4 * BLOCK]


def test_a_long_queue_makes_no_slow_steps() -> None:
    def step_s(waiting: int) -> float:
        scheduler = Scheduler(BlockAllocator(4096, 16), max_batch=64, max_step_tokens=512)
        for at in range(64 + waiting):
            scheduler.add(sequence(str(at), 40, 400, tenant=str(at % 10), priority=at % 3, token=at))
        times = []
        for _ in range(60):
            start = time.perf_counter()
            work = scheduler.schedule()
            scheduler.advance(work)
            times.append(time.perf_counter() - start)
            for item in work:
                if item.completes:
                    item.sequence.tokens.append(2)
        return min(times[20:])

    assert step_s(5_000) < 3 * step_s(10)
