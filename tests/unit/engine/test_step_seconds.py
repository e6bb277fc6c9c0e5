"""What is known of steps' times, from what was seen of them."""

from __future__ import annotations

import pytest

from argosy_services.engine.torch_engine.step_seconds import StepSeconds


def seen(*steps: tuple[int, float]) -> StepSeconds:
    seconds = StepSeconds()
    for rows, took in steps:
        seconds.observe(rows, took)
    return seconds


def test_the_fixed_share_is_that_of_the_line_through_few_and_many_rows() -> None:
    # 10 ms, and 1 ms for each row.
    assert seen((2, 0.012), (7, 0.017), (30, 0.040)).fixed_share(30) == pytest.approx(0.25)
    assert seen((1, 0.001), (30, 0.040)).fixed_share(30) == 0
    assert seen((1, 0.040), (30, 0.040)).fixed_share(30) == pytest.approx(1)


def test_without_different_steps_nothing_is_known() -> None:
    assert seen().fixed_share(30) is None
    assert seen((30, 0.04)).fixed_share(30) is None
    assert seen((30, 0.04), (31, 0.05)).fixed_share(30) is None
    assert seen((1, 0.01)).fixed_share(30) is None


def test_a_slow_step_is_believed_when_others_are_slow_too() -> None:
    quick, slow = (1, 0.01), (1, 1.0)
    many = (32, 0.4)
    share = seen(quick, slow, many).fixed_share(32)
    assert share is not None
    assert share < 0.04
    # A quick one is believed at once.
    assert seen(*[slow] * 3, quick, many).fixed_share(32) == seen(quick, many).fixed_share(32)
    assert seen(quick, *[slow] * 30, many).fixed_share(32) == seen(slow, many).fixed_share(32)
