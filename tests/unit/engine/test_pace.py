"""The pace at which an adapter is read beside an engine's steps."""

from __future__ import annotations

import itertools
import time

from argosy_services.engine.torch_engine.lora.pace import Beat, Pace

STEP_S = 0.002


class Engine:
    """An engine that makes a step whenever it has been looked at so many times."""

    def __init__(self, looks: int | None) -> None:
        self.looks = 0
        self._each = looks

    def beat(self) -> Beat:
        self.looks += 1
        return Beat(0 if self._each is None else self.looks // self._each, STEP_S)


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(itertools.repeat(1, 100))


def test_who_has_computed_for_a_part_of_a_step_waits_for_the_next_one() -> None:
    engine = Engine(looks=10)
    pace = Pace(engine.beat)
    compute(STEP_S)
    pace.rest()
    assert engine.looks == 10


def test_who_has_computed_little_goes_on() -> None:
    engine = Engine(looks=None)
    pace = Pace(engine.beat)
    pace.rest()
    assert engine.looks == 2


def test_a_new_step_gives_new_time() -> None:
    engine = Engine(looks=2)
    pace = Pace(engine.beat)
    compute(STEP_S)
    pace.rest()
    assert engine.looks == 2


def test_an_engine_that_makes_no_step_is_not_waited_for_without_end() -> None:
    engine = Engine(looks=None)
    pace = Pace(engine.beat)
    compute(STEP_S)
    started = time.monotonic()
    pace.rest()
    assert time.monotonic() - started >= STEP_S
    assert engine.looks > 2


def test_nothing_is_waited_for_while_nothing_runs() -> None:
    pace = Pace(lambda: None)
    compute(STEP_S)
    pace.rest()
