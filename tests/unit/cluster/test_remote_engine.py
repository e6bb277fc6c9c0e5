"""Sequences that outlive the replicas that run them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from argosy_services.cluster import remote_engine as module
from argosy_services.cluster.remote_engine import RemoteEngine, ReplicaLost
from argosy_services.engine.base import EngineInfo, Finish, Grammar, GrammarKind, Request, StepOutput, Timings
from argosy_services.errors import ArgosyError, Reason

INFO = EngineInfo("test", "test", "float32", "cpu", 1, 1_000, 1_000, frozenset({0}), 0, 0)
TIMINGS = Timings(queue_s=1.0, prefill_s=2.0, decode_s=3.0)


class Replicas:
    """Counts upwards from the prompt's last token; each attempt is lost after as many tokens as `lives` says."""

    def __init__(self, lives: Sequence[int | None]) -> None:
        self.lives = list(lives)
        self.asked: list[Request] = []
        self.closed = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def run(self, request: Request, take: Callable[[StepOutput], None]) -> None:
        self.asked.append(request)
        life = self.lives.pop(0) if self.lives else None
        try:
            for said, position in enumerate(range(len(request.generated), request.max_tokens)):
                if said == life:
                    raise ReplicaLost("killed")
                await self.hold.wait()
                last = position == request.max_tokens - 1
                take(
                    StepOutput(
                        request.id,
                        token_ids=(request.prompt[-1] + position + 1,),
                        finish=Finish.LENGTH if last else None,
                        timings=TIMINGS if last or said == 0 else None,
                        cached_tokens=len(self.asked),
                    )
                )
                await asyncio.sleep(0)
        finally:
            self.closed += 1

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        if self.lives and self.lives.pop(0) == 0:
            raise ReplicaLost("killed")
        return ArgosyError(Reason.INVALID_GRAMMAR, "bad") if grammar.source == "bad" else None


async def run(replicas: Replicas, max_tokens: int = 6) -> list[StepOutput]:
    engine = RemoteEngine(INFO, replicas)
    outputs: list[StepOutput] = []
    finished = asyncio.Event()

    def on_step(batch: list[StepOutput]) -> None:
        outputs.extend(batch)
        if batch[-1].finish is not None:
            finished.set()

    engine.start(on_step)
    engine.submit(Request("a", prompt=[10], max_tokens=max_tokens))
    await asyncio.wait_for(finished.wait(), 5)
    return outputs


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


@pytest.mark.parametrize("lives", [[], [3], [0], [1, 1, 1, 1, 1], [5], [2, 0, 0, 3]])
async def test_a_lost_replica_costs_no_token_and_repeats_none(lives: list[int]) -> None:
    replicas = Replicas(lives)
    outputs = await run(replicas)
    assert [token for output in outputs for token in output.token_ids] == [11, 12, 13, 14, 15, 16]
    assert {output.request_id for output in outputs} == {"a"}
    assert [output.finish for output in outputs if output.finish] == [Finish.LENGTH]
    assert replicas.closed == len(replicas.asked) == len(lives) + 1
    assert len({request.id for request in replicas.asked}) == len(replicas.asked)


async def test_queue_prefill_and_cached_tokens_are_those_of_the_first_attempt() -> None:
    outputs = await run(Replicas([3]))
    assert [output.timings for output in outputs[:-1]] == [TIMINGS, None, None, None, None]
    last = outputs[-1].timings
    assert last is not None
    assert (last.queue_s, last.prefill_s) == (1.0, 2.0)
    assert last.decode_s < 1.0
    assert {output.cached_tokens for output in outputs} == {1}


async def test_replicas_that_keep_failing_end_the_sequence() -> None:
    replicas = Replicas([2, *[0] * 20])
    outputs = await run(replicas)
    assert [token for output in outputs for token in output.token_ids] == [11, 12]
    assert outputs[-1].finish is Finish.FAILED
    assert outputs[-1].error is not None
    assert outputs[-1].error.reason is Reason.ENGINE_FAILED
    assert len(replicas.asked) == 5


async def test_cancelling_closes_the_stream_and_nothing_follows() -> None:
    replicas = Replicas([])
    engine = RemoteEngine(INFO, replicas)
    outputs: list[StepOutput] = []
    engine.start(outputs.extend)
    engine.submit(Request("a", prompt=[10], max_tokens=1_000_000))
    while not outputs:
        await asyncio.sleep(0)
    replicas.hold.clear()
    engine.cancel("a")
    engine.cancel("nobody")
    said = len(outputs)
    while not replicas.closed:
        await asyncio.sleep(0)
    assert len(outputs) == said


async def test_closing_ends_what_runs_with_draining() -> None:
    replicas = Replicas([])
    replicas.hold.clear()
    engine = RemoteEngine(INFO, replicas)
    outputs: list[StepOutput] = []
    engine.start(outputs.extend)
    engine.submit(Request("a", prompt=[10], max_tokens=3))
    await asyncio.sleep(0)
    await asyncio.to_thread(engine.close)
    while not outputs:
        await asyncio.sleep(0)
    assert outputs[0].error is not None
    assert outputs[0].error.reason is Reason.DRAINING
    with pytest.raises(ArgosyError) as refused:
        engine.submit(Request("b", prompt=[10], max_tokens=3))
    assert refused.value.reason is Reason.STARTING


async def test_a_grammar_is_asked_until_a_replica_answers() -> None:
    engine = RemoteEngine(INFO, Replicas([0, 0]))
    engine.start(lambda outputs: None)
    await asyncio.to_thread(engine.check_grammar, Grammar(GrammarKind.REGEX, "good"))
    with pytest.raises(ArgosyError) as refused:
        await asyncio.to_thread(engine.check_grammar, Grammar(GrammarKind.REGEX, "bad"))
    assert refused.value.reason is Reason.INVALID_GRAMMAR


async def test_what_goes_on_keeps_its_standing_and_the_rest_of_its_time() -> None:
    replicas = Replicas([2, 0])
    engine = RemoteEngine(INFO, replicas)
    finished = asyncio.Event()
    engine.start(lambda batch: finished.set() if batch[-1].finish is not None else None)
    asked = Request(
        "a", prompt=[10], max_tokens=4, tenant="t", priority=-1, cache_salt="s", adapter="x", timeout_s=10.0
    )
    replicas.hold.clear()
    engine.submit(asked)
    await asyncio.sleep(0.05)
    replicas.hold.set()
    await asyncio.wait_for(finished.wait(), 5)
    assert len(replicas.asked) == 3
    for again in replicas.asked[1:]:
        assert again.timeout_s is not None
        assert 9.0 < again.timeout_s < 9.96
        assert replace(again, id="a", generated=(), timeout_s=10.0) == asked
