"""Where guesses come from, how long they get, and what becomes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.engine.base import Finish, Request
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.speculation.lookup import PromptLookup
from argosy_services.engine.torch_engine.speculation.pace import (
    Chances,
    Prospect,
    StepTimes,
    lengths,
    likely_lengths,
)
from argosy_services.engine.torch_engine.speculation.speculator import Speculator
from argosy_services.engine.torch_engine.step import Work
from argosy_services.engine.torch_engine.taking import take

BLOCK = 4


def decoding(tokens: list[int], *, answer: int = 50, stops: frozenset[int] = frozenset()) -> Sequence:
    return Sequence.of(Request("r", tokens, answer, stop_token_ids=stops))


def test_the_latest_and_longest_match_counts() -> None:
    assert PromptLookup().guess([1, 2, 3, 7, 9, 2, 3, 8, 8, 1, 2, 3], 2) == (7, 9)
    assert PromptLookup().guess([5, 2, 3, 7, 9, 2, 3, 8, 8, 1, 2, 3], 2) == (8, 8)
    assert PromptLookup().guess([1, 2, 3, 4, 5, 6, 7], 3) == ()
    assert PromptLookup().guess([1], 3) == ()


def test_what_goes_round_goes_on() -> None:
    assert PromptLookup().guess([9, 1, 2, 3, 1, 2, 3], 7) == (1, 2, 3, 1, 2, 3, 1)


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60), steps=st.lists(st.integers(1, 5), max_size=12))
def test_a_lookup_that_grew_guesses_like_a_new_one(tokens: list[int], steps: list[int]) -> None:
    grown, end = PromptLookup(), 0
    for step in steps:
        end = min(end + step, len(tokens))
        assert grown.guess(tokens[:end], 4) == PromptLookup().guess(tokens[:end], 4)


def times(*points: tuple[int, float]) -> StepTimes:
    made = StepTimes()
    for _ in range(30):
        for rows, seconds in points:
            made.observe(rows, seconds)
    return made


def test_the_line_through_step_times() -> None:
    base, each = times((1, 5.5), (9, 9.5)).line()
    assert base == pytest.approx(5.0, rel=0.02)
    assert each == pytest.approx(0.5, rel=0.02)


@given(
    chances=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    base=st.floats(0.0, 10.0),
    each=st.floats(0.05, 5.0),
)
def test_drafts_are_as_long_as_pays(chances: list[float], base: float, each: float) -> None:
    """No draft of one token less or more promises clearly more tokens a second."""
    steps = times((1, base + each), (8, base + 8 * each))
    base, each = steps.line()
    sequences = len(chances)

    def rate(sizes: list[int]) -> float:
        tokens = sequences + sum(
            chance**place for chance, size in zip(chances, sizes, strict=True) for place in range(1, size + 1)
        )
        return tokens / (base + each * (sequences + sum(sizes)))

    chosen = lengths([Prospect(8, chance) for chance in chances], steps, sequences, sequences)
    for place, size in enumerate(chosen):
        shorter, longer = ([*chosen] for _ in range(2))
        shorter[place], longer[place] = size - 1, size + 1
        assert size == 0 or rate(shorter) <= rate(chosen)
        assert size == 8 or rate(longer) <= 1.15 * rate(chosen)


def test_dear_rows_and_full_batches_are_not_drafted_for() -> None:
    cheap, dear = times((1, 5.1), (11, 6.1)), times((1, 2.0), (11, 22.0))
    assert lengths([Prospect(8, 0.7)], cheap, 1, 1)[0] >= 4
    assert lengths([Prospect(8, 0.7)], dear, 1, 1) == [0]
    assert lengths([Prospect(8, 0.7)] * 4, cheap, 400, 400) == [0] * 4
    assert lengths([Prospect(8, 0.7, seconds=4.0)], cheap, 1, 1) == [0], "the draft model's own time counts"
    assert likely_lengths([Prospect(8, 0.5), Prospect(2, 0.99), Prospect(8, 0.05)]) == [3, 2, 0]


def test_chances_follow_what_happens() -> None:
    chances = Chances()
    for _ in range(20):
        chances.learn(4, wrong=False)
    assert chances.chance > 0.95
    for _ in range(20):
        chances.learn(0, wrong=True)
    assert chances.chance < 0.2


@given(tokens=st.lists(st.integers(0, 2), min_size=2, max_size=30), free=st.integers(0, 12), room=st.integers(0, 30))
def test_drafts_keep_to_budget_blocks_and_the_end_of_the_answer(tokens: list[int], free: int, room: int) -> None:
    sequence = decoding(tokens, answer=6, stops=frozenset({2}))
    needed = -(-len(tokens) // BLOCK)
    blocks = BlockAllocator(needed + free, BLOCK)
    assert blocks.grow(sequence.table, len(tokens))
    sequence.computed = len(tokens) - 1
    speculator = Speculator(blocks, 1 + room, lookup=True, model=None, always=True)
    (item,) = speculator.extend([Work(sequence, sequence.computed, 1)])
    assert item.count == 1 + len(item.draft) <= 1 + room
    assert len(item.draft) <= 5
    assert 2 not in item.draft[:-1]
    assert len(sequence.table) * BLOCK >= item.start + item.count
    blocks.check_integrity([sequence.table])
    assert item.token_ids() == [tokens[-1], *item.draft]


def test_a_prompt_that_is_not_through_has_no_draft() -> None:
    sequence = decoding([1, 2, 3, 1, 2, 3, 1, 2])
    blocks = BlockAllocator(8, BLOCK)
    blocks.grow(sequence.table, 8)
    speculator = Speculator(blocks, 64, lookup=True, model=None, always=True)
    part, last = Work(sequence, 0, 4), Work(sequence, 4, 4)
    assert speculator.extend([part]) == [part]
    assert speculator.extend([last])[0].draft[:3] == (3, 1, 2)


@pytest.mark.parametrize(
    ("drawn", "tokens", "accepted", "finish"),
    [
        ([5, 6, 7, 8], (5, 6, 7, 8), 3, None),
        ([5, 6, 9, 8], (5, 6, 9), 2, None),
        ([9, 6, 7, 8], (9,), 0, None),
        ([5, 0, 7, 8], (5, 0), 1, Finish.STOP),
    ],
    ids=["all right", "one wrong", "none right", "the answer ends"],
)
def test_an_answer_takes_what_was_drawn(
    drawn: list[int], tokens: tuple[int, ...], accepted: int, finish: Finish | None
) -> None:
    sequence = decoding([1, 2], stops=frozenset({0}))
    taken = take(sequence, (5, 6, 7), [(token, None) for token in drawn])
    assert (taken.tokens, taken.accepted, taken.finish) == (tokens, accepted, finish)
    assert sequence.tokens == [1, 2]


def test_an_answer_takes_no_more_than_it_may() -> None:
    taken = take(decoding([1, 2], answer=2), (5, 6, 7), [(token, None) for token in (5, 6, 7, 8)])
    assert (taken.tokens, taken.finish) == ((5, 6), Finish.LENGTH)
