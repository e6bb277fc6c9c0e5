"""From the engine's thread to the event loop: nothing is lost, nothing is mixed, nothing stays behind."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from contextlib import suppress

import pytest

from argosy_services.engine.base import Request, StepOutput
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.bridge import EngineBridge, Run
from argosy_services.generation.pace import Pace
from argosy_services.metrics_page import registry

from .conftest import engine_info, eventually
from .scripted import Script, ScriptedEngine

FAULT = ArgosyError(Reason.ENGINE_FAILED, "it broke")


def make(**knobs: object) -> tuple[ScriptedEngine, EngineBridge]:
    """The engine says the prompt back."""
    engine = ScriptedEngine(lambda request: Script(request.prompt), engine_info(), **knobs)
    return engine, EngineBridge(engine, "test-model")


def request(name: str, *tokens: int) -> Request:
    return Request(id=name, prompt=tokens, max_tokens=len(tokens))


async def read_for_ever(run: Run) -> None:
    while True:
        await run.next()


async def test_every_run_gets_its_own_outputs_in_their_order() -> None:
    engine, bridge = make(max_running=1000)
    bridge.start()

    async def one(number: int) -> None:
        draw = random.Random(number)
        prompts = {f"{number}-{part}": draw.choices(range(10_000), k=draw.randint(1, 40)) for part in range(3)}
        got: dict[str, list[int]] = {name: [] for name in prompts}
        open_ids = set(prompts)
        with bridge.run() as run:
            for name, tokens in prompts.items():
                run.submit(request(name, *tokens))
            while open_ids:
                for output in await run.next():
                    got[output.request_id] += output.token_ids
                    if output.finish is not None:
                        open_ids.discard(output.request_id)
                await asyncio.sleep(draw.random() / 500)
        assert got == prompts

    await asyncio.gather(*(one(number) for number in range(60)))
    assert not engine.running
    assert not bridge._runs
    bridge.close()
    assert engine.fault is None


async def test_news_of_all_runs_come_at_the_same_ticks() -> None:
    interval_s = 0.2
    pace = Pace(interval_s)
    _, bridge = make(step_s=0.01)
    bridge.start()

    async def one(number: int) -> list[float]:
        """When the news came, the first and the last aside, which come at once."""
        await asyncio.sleep(0.03 * number)
        came: list[float] = []
        with bridge.run(pace=pace) as run:
            run.submit(request(f"{number}", *range(60)))
            finished = False
            while not finished:
                outputs = await run.next()
                came.append(time.monotonic())
                finished = outputs[-1].finish is not None
        return came[1:-1]

    runs = await asyncio.gather(*(one(number) for number in range(4)))
    bridge.close()
    for came in runs:
        assert 1 <= len(came) <= 60 * 0.02 / interval_s + 2
        for moment in came:
            assert moment % interval_s < 0.1


async def test_a_tick_without_news_wakes_nobody() -> None:
    engine, bridge = make()
    bridge.start()
    engine.going.clear()
    pace = Pace(0.01)
    with bridge.run(pace=pace) as run:
        run.submit(request("a", 1, 2, 3))
        run._wait_for_tick(time.monotonic())
        reading = asyncio.create_task(run.next())
        await asyncio.sleep(0.05)
        assert not reading.done()
        engine.going.set()
        assert await reading
    bridge.close()


async def test_streams_together_send_no_more_than_they_may() -> None:
    streams, steps, step_s, per_second = 10, 60, 0.01, 100
    pace = Pace(0.001, per_second)
    _, bridge = make(max_running=streams, step_s=step_s)
    bridge.start()

    async def one(number: int) -> int:
        """How often news came, the first and the last aside."""
        came = 0
        with bridge.run(pace=pace) as run:
            run.submit(request(f"{number}", *range(steps)))
            finished = False
            while not finished:
                finished = (await run.next())[-1].finish is not None
                came += 1
        return came - 2

    started = time.monotonic()
    came = await asyncio.gather(*(one(number) for number in range(streams)))
    seconds = time.monotonic() - started
    bridge.close()
    assert streams <= sum(came) <= per_second * seconds + streams
    assert pace.interval_s == 0.001


async def test_what_its_watch_ends_is_freed_before_its_reader_hears_of_it() -> None:
    engine, bridge = make(step_s=0.01)
    bridge.start()
    with bridge.run(pace=Pace(0.5)) as run:
        run.submit(request("watched", *range(60)), lambda output: 3 in output.token_ids, at_once=True)
        run.submit(request("free", *range(60)))
        seen = await run.next()
        while not any(output.finish for output in seen):
            seen += await run.next()
    bridge.close()
    tokens = [token for output in seen if output.request_id == "watched" for token in output.token_ids]
    assert tokens == [0, 1, 2, 3]
    assert engine.cancelled == ["watched"]
    assert [token for output in seen if output.request_id == "free" for token in output.token_ids] == list(range(60))


async def test_a_watch_that_fails_fails_its_own_run() -> None:
    engine, bridge = make(step_s=0.05)
    bridge.start()
    engine.going.clear()

    def broken(output: StepOutput) -> bool:
        raise LookupError("no such token")

    with bridge.run() as run, bridge.run() as other:
        run.submit(request("broken", 1, 2, 3), broken)
        other.submit(request("whole", 1, 2, 3))
        engine.going.set()
        with pytest.raises(LookupError):
            await read_for_ever(run)
        tokens = [token for output in await other.next() for token in output.token_ids]
        while len(tokens) < 3:
            tokens += [token for output in await other.next() for token in output.token_ids]
    bridge.close()
    assert tokens == [1, 2, 3]
    assert engine.cancelled == ["broken"]


async def test_a_stream_that_is_left_counts_no_more() -> None:
    pace = Pace(0.001, 100)
    _, bridge = make(step_s=0.01)
    bridge.start()
    with suppress(LookupError), bridge.run(pace=pace) as run:
        for name in ("a", "b"):
            run.submit(request(name, *range(60)))
        while len({output.request_id for output in await run.next()}) < 2:
            pass
        assert pace.interval_s == 0.02
        raise LookupError
    bridge.close()
    assert pace.interval_s == 0.001


@pytest.fixture
async def crossings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows each time that a thread wakes the event loop."""
    loop = asyncio.get_running_loop()
    found: list[object] = []
    original = loop.call_soon_threadsafe

    def counted(*args: object, **kwargs: object) -> object:
        if threading.current_thread() is not threading.main_thread():
            found.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    return found


async def test_the_loop_sleeps_until_somebody_has_waited(crossings: list[object]) -> None:
    engine, bridge = make(step_s=0.005)
    bridge.start()
    with bridge.run(pace=Pace(0.2)) as run:
        run.submit(request("a", *range(100)))
        got: list[int] = []
        ticks = 0
        while len(got) < 100:
            got += [token for output in await run.next() for token in output.token_ids]
            ticks += 1
    bridge.close()
    assert got == list(range(100))
    assert engine.callbacks == 100
    assert len(crossings) <= ticks + 1


async def test_what_has_not_been_read_is_counted_when_a_run_is_left() -> None:
    engine, bridge = make(step_s=0.005)
    bridge.start()
    with bridge.run(pace=Pace(10.0)) as run:
        run.submit(request("left", *range(1_000)))
        await run.next()
        await asyncio.sleep(0.1)
        handed_out = engine.callbacks
    bridge.close()
    assert run.progress["left"].tokens >= handed_out > 5


async def test_an_error_comes_after_what_was_there_before_it() -> None:
    engine, bridge = make(step_s=0.005)
    bridge.start()
    with bridge.run(pace=Pace(10.0)) as run:
        run.submit(request("cut", *range(1_000)))
        got = [token for output in await run.next() for token in output.token_ids]
        await asyncio.sleep(0.1)
        run.fail(FAULT)
        got += [token for output in await run.next() for token in output.token_ids]
        assert got == list(range(len(got)))
        assert len(got) > 5
        with pytest.raises(ArgosyError) as cut:
            await run.next()
    assert cut.value is FAULT
    assert engine.cancelled == ["cut"]
    bridge.close()


async def test_a_step_crosses_in_one_callback(crossings: list[object]) -> None:
    engine, bridge = make()
    bridge.start()
    engine.going.clear()
    with bridge.run() as run:
        for number in range(20):
            run.submit(request(str(number), 1, 2, 3))
        engine.going.set()
        finished = 0
        while finished < 20:
            finished += sum(output.finish is not None for output in await run.next())
    assert len(crossings) == engine.callbacks == 3
    bridge.close()


async def test_leaving_a_run_frees_what_is_unfinished() -> None:
    engine, bridge = make()
    bridge.start()
    engine.going.clear()
    with suppress(LookupError), bridge.run() as run:
        run.submit(request("left", 1, 2))
        run.submit(request("too", 1, 2))
        raise LookupError
    assert not engine.running
    assert sorted(engine.cancelled) == ["left", "too"]
    bridge.close()


async def test_a_finished_sequence_is_not_cancelled() -> None:
    engine, bridge = make()
    bridge.start()
    with bridge.run() as run:
        run.submit(request("whole", 1))
        await run.next()
    assert engine.cancelled == []
    bridge.close()


async def test_a_refused_sequence_ends_those_before_it() -> None:
    engine, bridge = make(max_running=2)
    bridge.start()
    engine.going.clear()
    with bridge.run() as run:
        run.submit(request("a", 1, 2))
        run.submit(request("b", 1, 2))
        with pytest.raises(ArgosyError) as refused:
            run.submit(request("c", 1, 2))
        assert engine.running == {"a", "b"}
    assert refused.value.reason is Reason.QUEUE_FULL
    assert not engine.running
    bridge.close()


async def test_the_deadline_frees_the_engine_even_if_nobody_reads() -> None:
    engine, bridge = make(step_s=0.005)
    bridge.start()
    with bridge.run(time.monotonic() + 0.05) as run:
        run.submit(request("slow", *range(400)))
        await eventually(lambda: engine.cancelled == ["slow"])
        got = [token for output in await run.next() for token in output.token_ids]
        assert got == list(range(len(got)))
        assert got
        with pytest.raises(ArgosyError) as late:
            await run.next()
    assert late.value.reason is Reason.DEADLINE_EXCEEDED
    bridge.close()


async def test_a_failed_run_takes_nothing_more() -> None:
    engine, bridge = make()
    bridge.start()
    with bridge.run() as run:
        run.fail(FAULT)
        with pytest.raises(ArgosyError) as refused:
            run.submit(request("late", 1))
    assert refused.value is FAULT
    assert engine.submitted == []
    bridge.close()


async def test_close_ends_runs_with_draining() -> None:
    _, bridge = make(step_s=0.01)
    bridge.start()
    with bridge.run() as run:
        run.submit(request("cut", *range(400)))
        await run.next()
        bridge.close()
        with pytest.raises(ArgosyError) as cut:
            await read_for_ever(run)
    assert cut.value.reason is Reason.DRAINING


def test_an_engine_that_was_not_started_refuses() -> None:
    engine, bridge = make()
    with pytest.raises(ArgosyError) as refused, bridge.run() as run:
        run.submit(request("early", 1))
    assert refused.value.reason is Reason.STARTING
    assert engine.submitted == []


def test_the_engine_outlives_the_event_loop() -> None:
    engine, bridge = make(step_s=0.002)

    async def leave_early() -> None:
        bridge.start()
        bridge.run().submit(request("orphan", *range(30)))

    asyncio.run(leave_early())
    steps = engine.callbacks
    deadline = time.monotonic() + 5
    while engine.running and time.monotonic() < deadline:
        time.sleep(0.002)
    assert engine.callbacks > steps
    engine.close()
    assert engine.fault is None


async def test_an_output_for_nobody_is_dropped() -> None:
    engine, bridge = make()
    bridge.start()
    assert engine._on_step is not None
    engine._on_step([StepOutput("unknown", (1,))])
    with bridge.run() as run:
        run.submit(request("known", 7))
        assert [output.token_ids for output in await run.next()] == [(7,)]
    bridge.close()


async def test_metrics_carry_the_model_and_add_up() -> None:
    def value(name: str) -> float:
        return registry().get_sample_value(name, {"model": "test-model"}) or 0.0

    names = (
        "argosy_prompt_tokens_total",
        "argosy_generated_tokens_total",
        "argosy_time_to_first_token_seconds_count",
        "argosy_inter_token_seconds_count",
        "argosy_queue_seconds_count",
        "argosy_queue_seconds_sum",
    )
    engine, bridge = make()
    engine.script = lambda request: Script(request.prompt, cached_tokens=3)
    bridge.start()
    before = [value(name) for name in names]
    with bridge.run() as run:
        run.submit(request("counted", *range(5)))
        outputs = []
        while not (outputs and outputs[-1].finish):
            outputs += await run.next()
    after = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert after == pytest.approx([5 - 3, 5, 1, 4, 1, 0.25])
    bridge.close()
