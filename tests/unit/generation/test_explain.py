"""What is told of a request, while it runs and afterwards."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from argosy_services import metrics
from argosy_services.engine.base import Ahead, Timings
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.account import Ledger
from argosy_services.generation.explanation import Cause, Explanation, RequestState
from argosy_services.generation.explanation import Stage as Part
from argosy_services.generation.service import GenerationService, ServedModel
from argosy_services.generation.types import GenerationSpec, Options, ScoreItem, ScoreSpec
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer

from . import scripted
from .conftest import Stage, engine_info
from .scripted import Script, ScriptedEngine, ScriptedLeases

SPEC = GenerationSpec(prompt="Say something")


async def run(stage: Stage, spec: GenerationSpec = SPEC, request_id: str = "req", tenant: str = "") -> None:
    async for _ in stage.service.stream(spec, request_id=request_id, tenant=tenant):
        pass


def parts(explanation: Explanation) -> dict[Part, float]:
    return dict(explanation.stages)


async def test_a_finished_request(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = Ahead(own=2, others=5, higher_priority=1, waiting_tokens=300)
    told = Timings(0.25, 0.5, 0.75, grammar_s=0.125, ahead=ahead, short_of="blocks")
    monkeypatch.setattr(scripted, "TIMINGS", told)
    stage.says("Ahoy", cached_tokens=2)
    await run(stage)
    found = await stage.service.explain("req")
    assert (found.state, found.reason, found.model) == (RequestState.FINISHED, "", "smollm2-135m-instruct")
    assert (found.cached_tokens, found.completion_tokens, found.sequences) == (2, len(stage.ids("Ahoy")) + 1, 1)
    assert parts(found)[Part.COMPILE_GRAMMAR] == 0.125
    assert parts(found)[Part.QUEUE] == 0.125
    assert parts(found)[Part.PREFILL] == 0.5
    assert parts(found)[Part.DECODE] >= 0.75
    waits = {wait.cause: wait for wait in found.waits}
    assert waits[Cause.QUEUE].ahead == ahead
    assert waits[Cause.QUEUE].short_of == "blocks"
    assert waits[Cause.GRAMMAR].seconds == 0.125


@pytest.mark.parametrize(("lost_at", "from_stage"), [(0.3, Part.PREFILL), (1.0, Part.DECODE)])
async def test_time_without_a_place_is_no_time_of_work(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lost_at: float, from_stage: Part
) -> None:
    told = Timings(0.25, 0.5, 0.75, preempted_s=(0.26, lost_at), requeued_s=0.2)
    stage.says("Ahoy")
    await run(stage, request_id="undisturbed")
    monkeypatch.setattr(scripted, "TIMINGS", told)
    await run(stage)
    found, undisturbed = [parts(await stage.service.explain(name)) for name in ("req", "undisturbed")]
    assert found[Part.PREEMPTED] == 0.2
    assert found[from_stage] == pytest.approx(undisturbed[from_stage] - 0.2)
    (wait,) = [wait for wait in (await stage.service.explain("req")).waits if wait.cause is Cause.PREEMPTION]
    assert (wait.times, wait.seconds) == (2, 0.2)


async def test_a_running_request(stage: Stage) -> None:
    stage.says("Ahoy")
    stage.engine.going.clear()
    async with aclosing(stage.service.stream(SPEC, request_id="req")) as events:
        await anext(events)
        before = await stage.service.explain("req")
        assert before.state is RequestState.RUNNING
        assert parts(before).keys() == {Part.TOKENIZE, Part.ADMISSION}
        await asyncio.sleep(0.02)
        later = await stage.service.explain("req")
        assert parts(later)[Part.ADMISSION] >= parts(before)[Part.ADMISSION] + 0.02
        assert later.seconds >= before.seconds + 0.02
    stage.engine.going.set()
    cancelled = await stage.service.explain("req")
    assert cancelled.state is RequestState.CANCELLED
    assert cancelled.seconds == (await stage.service.explain("req")).seconds


async def test_a_slow_reader_is_seen(stage: Stage) -> None:
    stage.says("Ahoy there, a longer answer")
    async for _ in stage.service.stream(SPEC, request_id="req"):
        await asyncio.sleep(0.01)
    (wait,) = [wait for wait in (await stage.service.explain("req")).waits if wait.cause is Cause.READER]
    assert wait.seconds >= 0.01


async def test_an_adapter_that_was_waited_for(stage: Stage) -> None:
    stage.says("Arr")
    await run(stage, GenerationSpec(prompt="Hi", adapter="pirate"))
    found = await stage.service.explain("req")
    assert found.adapter == "pirate"
    assert [wait.adapter for wait in found.waits if wait.cause is Cause.ADAPTER] == ["pirate"]


async def test_a_failed_request(stage: Stage) -> None:
    stage.says("Ahoy", fail_at=1, error=ArgosyError(Reason.ENGINE_FAILED, "broken"))
    with pytest.raises(ArgosyError):
        await run(stage)
    found = await stage.service.explain("req")
    assert (found.state, found.reason) == (RequestState.FAILED, "ENGINE_FAILED")


async def test_a_request_that_was_refused(stage: Stage) -> None:
    with pytest.raises(ArgosyError):
        await run(stage, GenerationSpec(prompt="Hi", options=Options(temperature=-1.0)))
    assert (await stage.service.explain("req")).reason == "INVALID_FIELD"


async def test_scores_are_explained_by_the_slowest_item(stage: Stage) -> None:
    stage.says("x")
    spec = ScoreSpec(tuple(ScoreItem("One two", f" {number}") for number in range(5)))
    await stage.service.score(spec, request_id="req")
    found = await stage.service.explain("req")
    assert found.sequences == 5
    assert Part.PREFILL in parts(found)


async def test_only_ones_own_requests_are_known(stage: Stage) -> None:
    stage.says("Ahoy")
    await run(stage, tenant="mine")
    assert (await stage.service.explain("req", "mine")).state is RequestState.FINISHED
    for tenant in ("theirs", ""):
        with pytest.raises(ArgosyError) as raised:
            await stage.service.explain("req", tenant)
        assert raised.value.reason is Reason.REQUEST_NOT_FOUND


async def test_peers_are_asked_for_what_is_not_known_here(smollm2: LocalModel, tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(lambda request: Script([2]), engine_info())
    other = GenerationService([ServedModel(smollm2, engine, tokenizer)], ScriptedLeases())

    class Peers:
        async def explain(self, request_id: str, tenant: str) -> Explanation | None:
            return other.explain_here(request_id, tenant)

    asked = GenerationService([ServedModel(smollm2, engine, tokenizer)], ScriptedLeases(), peers=Peers())
    other.start()
    await other.generate(SPEC, request_id="req", tenant="mine")
    assert (await asked.explain("req", "mine")).request_id == "req"
    with pytest.raises(ArgosyError):
        await asked.explain("req", "theirs")
    other.close()


def test_so_many_are_kept_and_no_more() -> None:
    ledger = Ledger(3)
    for number in range(10):
        with ledger.account(f"r{number}", "t", "m", "", 0):
            assert ledger.explain(f"r{number}", "t") is not None
    assert [number for number in range(10) if ledger.explain(f"r{number}", "t")] == [7, 8, 9]


def test_an_id_that_is_used_again_means_the_later_request() -> None:
    ledger = Ledger(10)
    with ledger.account("r", "t", "first", "", 0), ledger.account("r", "t", "second", "", 0):
        found = ledger.explain("r", "t")
        assert found is not None
        assert found.model == "second"


async def test_usage_is_counted_by_tenant_and_adapter(stage: Stage) -> None:
    labels = {"tenant": metrics.tenant_label("mine"), "model": "smollm2-135m-instruct", "adapter": "pirate"}
    kinds = ("prompt", "cached", "completion")
    before = [metrics.USAGE_TOKENS.labels(**labels, kind=kind).now() for kind in kinds]
    stage.says("Arr", cached_tokens=1)
    await run(stage, GenerationSpec(prompt="Hi there", adapter="pirate", options=Options(n=2)), tenant="mine")
    found = [metrics.USAGE_TOKENS.labels(**labels, kind=kind).now() for kind in kinds]
    tokens = 2 * (len(stage.ids("Arr")) + 1)
    assert [new - old for new, old in zip(found, before, strict=True)] == [len(stage.ids("Hi there")), 1, tokens]
