"""The library's statistics in our words."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import MakeBench, ask, eventually

from argosy_services.engine.tensorrt_llm.stats import Statistics
from argosy_services.metrics_page import registry

REPORT = {
    "iter": 10,
    "numQueuedRequests": 3,
    "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 40},
    "inflightBatchingStats": {"numPausedRequests": 2},
}


def test_a_report() -> None:
    """Fails when a number is read under another name."""
    statistics = Statistics()
    statistics.take(REPORT)
    picture = statistics.picture(live=8, unstarted=5, unstarted_tokens=50, adapters=1)
    assert (picture.running, picture.waiting, picture.waiting_tokens) == (5, 3, 50)
    assert (picture.kv_blocks_in_use, picture.kv_blocks_total, picture.adapters) == (40, 100, 1)
    assert (picture.steps, picture.preemptions) == (10, 2)


@pytest.mark.parametrize(
    "report", [{}, {"iter": None}, {"kvCacheStats": None}, {"kvCacheStats": {}, "inflightBatchingStats": 3}]
)
def test_every_key_may_be_missing(report: dict[str, Any]) -> None:
    """Fails when a key is read that the library's documentation does not promise."""
    statistics = Statistics()
    statistics.take(REPORT)
    statistics.take(report)
    assert statistics.picture(live=1, unstarted=0, unstarted_tokens=0, adapters=0).kv_blocks_total == 100


def test_late_reports_do_not_count_more_than_there_are() -> None:
    """Fails when the library's queue is believed after its requests have ended."""
    statistics = Statistics()
    statistics.take(REPORT)
    picture = statistics.picture(live=0, unstarted=0, unstarted_tokens=0, adapters=0)
    assert (picture.running, picture.waiting) == (0, 0)


def test_counters_go_on_over_a_restart() -> None:
    """Fails when a new instance, which counts from 0, takes steps back or stops the count."""
    statistics = Statistics()
    statistics.take(REPORT)
    statistics.library_was_replaced()
    statistics.take({"iter": 4})
    assert statistics.steps == 14


def test_they_reach_the_engine(bench: MakeBench, control: Any) -> None:
    """Fails when statistics are not read, or by two tasks, or only until their iteration ended for the first time."""
    engine = bench()
    engine.run(ask("a"))
    for steps in (10, 20, 25):
        control.reports = [{**REPORT, "iter": steps}]
        eventually(lambda steps=steps: engine.engine.stats().steps == steps)
    assert (registry().get_sample_value("argosy_engine_steps_total", {"model": "tiny"}) or 0) >= 25
    assert control.llms[0].args["enable_iter_perf_stats"] is True


def test_nobody_asks_before_the_first_request(bench: MakeBench, control: Any) -> None:
    """Fails when statistics are asked for before there are any; the library warns each time."""
    engine = bench()
    eventually(lambda: engine.takes)
    time.sleep(0.6)
    assert control.stats_asked_early == 0


def test_broken_statistics_break_nothing_else(bench: MakeBench, control: Any) -> None:
    """Fails when an error of the statistics ends the engine."""
    control.stats_fail = True
    engine = bench()
    engine.run(ask("a"))
    time.sleep(0.4)
    control.stats_fail = False
    control.reports = [dict(REPORT)]
    eventually(lambda: engine.engine.stats().steps == 10)
