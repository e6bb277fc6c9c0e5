"""Requests from prompt to answer, over an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.pace import Pace
from argosy_services.generation.service import GenerationService
from argosy_services.generation.structure import grammar_of
from argosy_services.generation.types import (
    ChatPrompt,
    ChoiceFinished,
    Delta,
    Event,
    Finished,
    FinishReason,
    GenerationSpec,
    Options,
    Started,
    TextChoice,
    Usage,
)
from argosy_services.tokenization.types import Chat, ChatMessage, Role

from .conftest import EOS, Stage, eventually
from .scripted import Script, logprob_of

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
SPEC = GenerationSpec(prompt="Say something")
CHAT = Chat([ChatMessage(Role.USER, "Hi 🙂")])


async def read(stage: Stage, spec: GenerationSpec, **how: float) -> list[Event]:
    return [event async for event in stage.service.stream(spec, request_id="req", **how)]


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.index == index)


def finishes(events: list[Event]) -> dict[int, ChoiceFinished]:
    return {event.index: event for event in events if isinstance(event, ChoiceFinished)}


async def test_a_stream_has_its_events_in_order(stage: Stage) -> None:
    stage.says("A 🙂🇩🇪 day, 漢字!", cached_tokens=2)
    events = await read(stage, SPEC)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Started | Finished) for event in events) == 2
    assert text_of(events) == "A 🙂🇩🇪 day, 漢字!"
    assert finishes(events) == {0: ChoiceFinished(0, STOP, stop_token_id=EOS)}
    prompt = stage.tokenizer.encode(SPEC.prompt)
    (request,) = stage.engine.submitted
    assert request.prompt == prompt
    assert request.max_tokens == stage.engine.info.max_context_tokens - len(prompt)
    assert events[0].prompt_tokens == len(prompt)
    assert events[0].origin.model == stage.service.model("").name
    tokens = [token for event in events if isinstance(event, Delta) for token in event.token_ids]
    assert tokens == [*stage.ids("A 🙂🇩🇪 day, 漢字!"), EOS]
    assert events[-1].usage == Usage(len(prompt), 2, len(tokens))


async def test_the_whole_answer_is_that_of_the_stream(stage: Stage) -> None:
    stage.says("first 🙂 of three, and it ends last", "second", "third and last")
    stage.scripts[1] = replace(stage.scripts[1], cached_tokens=2)
    spec = replace(SPEC, options=Options(n=3, logprobs=1, stop=(" and last",), seed=40))
    events = await read(stage, spec)
    generation = await stage.service.generate(spec, request_id="req")
    assert [choice.finished.index for choice in generation.choices] == [0, 1, 2]
    for index, choice in enumerate(generation.choices):
        assert choice.text == text_of(events, index)
        assert choice.finished == finishes(events)[index]
        assert choice.logprobs == tuple(map(logprob_of, choice.token_ids))
    assert [choice.text for choice in generation.choices] == ["first 🙂 of three, and it ends last", "second", "third"]
    assert generation.choices[2].finished == ChoiceFinished(2, STOP, stop_string=" and last")
    assert [request.sampling.seed for request in stage.engine.submitted] == [40, 41, 42] * 2
    assert generation.usage.completion_tokens == sum(len(choice.token_ids) for choice in generation.choices)
    # What one of the choices had to compute was not cached.
    assert (generation.usage.prompt_tokens, generation.usage.cached_tokens) == (len(stage.ids("Say something")), 0)


async def test_timings_are_the_engines_and_ours(stage: Stage) -> None:
    stage.says("done")
    timings = (await stage.service.generate(SPEC, request_id="req")).timings
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (0.25, 0.5, 0.75)
    assert 0 < timings.tokenization_s < timings.total_s


async def test_timings_of_a_sequence_that_a_stop_string_ended_are_measured_here(stage: Stage) -> None:
    stage.engine.step_s = 0.005
    stage.says("one two three four five six")
    timings = (await stage.service.generate(replace(SPEC, options=Options(stop=(" five",))), request_id="r")).timings
    assert timings.queue_s == 0
    assert timings.prefill_s >= 0.005
    assert timings.decode_s is not None
    assert timings.decode_s >= 0.015
    assert timings.total_s >= timings.prefill_s + timings.decode_s


async def test_a_stop_string_frees_the_engine_before_the_client_reads_on(stage: Stage) -> None:
    stage.engine.step_s = 0.002
    stage.says("Thought: done. Observation: " + "and so on " * 40)
    spec = replace(SPEC, options=Options(stop=("Observation:",)))
    text, token_ids = "", []
    async for event in stage.service.stream(spec, request_id="r"):
        if isinstance(event, Delta):
            text += event.text
            token_ids += event.token_ids
            stopped = "Observation:" in stage.tokenizer.decode(token_ids)
            assert len(stage.engine.cancelled) == stopped
    assert stopped
    assert text == "Thought: done. "


async def test_whole_answers_do_not_slow_streams_down(stage: Stage) -> None:
    pace = Pace(0.001, 100)
    stage.service._pace = pace
    stage.engine.step_s = 0.005
    stage.says("and so on " * 20)
    whole = asyncio.create_task(stage.service.generate(replace(SPEC, options=Options(n=4)), request_id="whole"))
    await eventually(lambda: len(stage.engine.running) == 4)
    intervals = [
        pace.interval_s async for event in stage.service.stream(SPEC, request_id="r") if isinstance(event, Delta)
    ]
    assert set(intervals[:-1]) == {0.01}
    assert len((await whole).choices) == 4
    assert pace.interval_s == 0.001


async def test_max_tokens_ends_with_length(stage: Stage) -> None:
    stage.says("one two three four")
    (choice,) = (await stage.service.generate(replace(SPEC, options=Options(max_tokens=2)), request_id="r")).choices
    assert (choice.text, choice.finished) == ("one two", ChoiceFinished(0, LENGTH))


async def test_a_slow_reader_gets_everything_in_fewer_deltas(stage: Stage) -> None:
    answer = "slow and steady wins the 🙂 race " * 10
    stage.says(answer)
    events = []
    async for event in stage.service.stream(SPEC, request_id="r"):
        events.append(event)
        await asyncio.sleep(0.01)
    assert text_of(events) == answer
    assert sum(isinstance(event, Delta) for event in events) < len(stage.ids(answer)) / 2


async def test_a_chat_gets_no_special_tokens_but_its_templates(stage: Stage) -> None:
    stage.says("Hello")
    await stage.service.generate(replace(SPEC, prompt=ChatPrompt(CHAT)), request_id="r")
    rendered = stage.tokenizer.render_chat(CHAT)
    assert rendered.endswith("<|im_start|>assistant\n")
    assert stage.engine.submitted[0].prompt == stage.ids(rendered)


async def test_a_prefix_stands_after_the_chat_and_is_not_returned(stage: Stage) -> None:
    stage.says(" fine")
    generation = await stage.service.generate(replace(SPEC, prompt=ChatPrompt(CHAT, prefix="I am doi")), request_id="r")
    assert stage.engine.submitted[0].prompt == stage.ids(stage.tokenizer.render_chat(CHAT) + "I am doi")
    assert generation.choices[0].text == " fine"


async def test_token_ids_are_used_as_they_are(stage: Stage) -> None:
    stage.says("x")
    await stage.service.generate(replace(SPEC, prompt=(1, 2, 49_151)), request_id="r")
    assert stage.engine.submitted[0].prompt == [1, 2, 49_151]


async def test_long_texts_are_tokenized_beside_the_event_loop(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.says("x")
    stage.engine.info = dataclasses.replace(stage.engine.info, max_context_tokens=1 << 20)
    longest_gap, ticking = 0.0, True

    async def tick() -> None:
        nonlocal longest_gap
        while ticking:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest_gap = max(longest_gap, time.monotonic() - before)

    ticker = asyncio.create_task(tick())
    text = "All work and no play makes 🙂 a dull text. " * 20_000
    start = time.monotonic()
    generation = await stage.service.generate(replace(SPEC, prompt=text), request_id="r")
    took = time.monotonic() - start
    ticking = False
    await ticker
    assert generation.timings.tokenization_s > took / 2
    assert longest_gap < took / 2


@pytest.mark.parametrize(
    ("options", "stop_tokens"),
    [
        (Options(), {EOS}),
        (Options(stop_token_ids=(5, 6)), {EOS, 5, 6}),
        (Options(ignore_eos=True), set()),
        (Options(ignore_eos=True, stop_token_ids=(5,)), {5}),
    ],
)
async def test_the_engine_is_told_what_ends_an_answer(stage: Stage, options: Options, stop_tokens: set[int]) -> None:
    stage.says("x")
    await stage.service.generate(replace(SPEC, options=replace(options, max_tokens=3, min_tokens=2)), request_id="r")
    (request,) = stage.engine.submitted
    assert request.stop_token_ids == stop_tokens
    assert (request.max_tokens, request.min_tokens) == (3, 2)


async def test_engine_ids_are_unique_though_request_ids_are_not(stage: Stage) -> None:
    stage.says("same")
    spec = replace(SPEC, options=Options(n=2))
    await asyncio.gather(*(stage.service.generate(spec, request_id="twice") for _ in range(5)))
    ids = [request.id for request in stage.engine.submitted]
    assert len(set(ids)) == 10
    assert all(name.startswith("twice-") and name[-2:] in ("-0", "-1") for name in ids)


class TestForms:
    async def test_a_choice_becomes_a_grammar(self, stage: Stage) -> None:
        stage.says("yes")
        form = TextChoice(("yes", "no"))
        await stage.service.generate(replace(SPEC, form=form), request_id="r")
        assert stage.engine.grammars == [grammar_of(form)]
        assert stage.engine.submitted[0].grammar == grammar_of(form)

    @pytest.mark.parametrize("kind", GrammarKind)
    async def test_what_cannot_be_compiled_is_refused_by_its_field(self, stage: Stage, kind: GrammarKind) -> None:
        with pytest.raises(ArgosyError) as refused:
            await stage.service.generate(replace(SPEC, form=Grammar(kind, "broken")), request_id="r")
        assert refused.value.reason is Reason.INVALID_GRAMMAR
        assert refused.value.metadata == {"field": f"spec.structured_output.{kind.value}", "detail": "it is broken"}
        assert stage.engine.submitted == []


class TestRefusals:
    """Nothing that is wrong reaches the engine."""

    @pytest.fixture(autouse=True)
    async def untouched(self, stage: Stage) -> AsyncIterator[None]:
        stage.says("never")
        yield
        assert stage.engine.submitted == []
        assert stage.leases.held == 0

    async def refused(self, stage: Stage, spec: GenerationSpec) -> ArgosyError:
        with pytest.raises(ArgosyError) as refused:
            await stage.service.generate(spec, request_id="r")
        return refused.value

    async def test_an_unknown_model(self, stage: Stage) -> None:
        error = await self.refused(stage, replace(SPEC, model="gpt-17"))
        assert error.reason is Reason.MODEL_NOT_FOUND
        assert "smollm2" in error.message

    async def test_another_tokenizer(self, stage: Stage) -> None:
        error = await self.refused(stage, replace(SPEC, tokenizer_fingerprint="f" * 64))
        assert error.reason is Reason.TOKENIZER_MISMATCH
        assert error.metadata["expected"] == stage.tokenizer.fingerprint

    async def test_an_unknown_adapter(self, stage: Stage) -> None:
        error = await self.refused(stage, replace(SPEC, adapter="parrot"))
        assert error.reason is Reason.ADAPTER_NOT_FOUND

    @pytest.mark.parametrize("prompt", ["", ()])
    async def test_an_empty_prompt(self, stage: Stage, prompt: str | tuple[int, ...]) -> None:
        error = await self.refused(stage, replace(SPEC, prompt=prompt))
        assert (error.reason, error.metadata["field"]) == (Reason.INVALID_FIELD, "spec.prompt")

    @pytest.mark.parametrize("wrong", [-1, 49_152, 1 << 32])
    async def test_ids_that_the_model_does_not_have(self, stage: Stage, wrong: int) -> None:
        error = await self.refused(stage, replace(SPEC, prompt=(5, wrong, 6)))
        assert (error.reason, error.metadata["field"]) == (Reason.INVALID_FIELD, "spec.tokens")
        assert error.metadata["value"] == str(wrong)

    @pytest.mark.parametrize(
        ("prompt", "max_tokens", "value"),
        [
            ((5,) * 512, None, 513),
            ((5,) * 500, 13, 513),
            ((5,) * 9, (1 << 32) - 1, (1 << 32) + 8),
            ("a " * 600, 1, None),
        ],
    )
    async def test_more_than_the_context_holds(
        self, stage: Stage, prompt: str | tuple[int, ...], max_tokens: int | None, value: int | None
    ) -> None:
        error = await self.refused(stage, replace(SPEC, prompt=prompt, options=Options(max_tokens=max_tokens)))
        assert error.reason is Reason.PROMPT_TOO_LONG
        assert error.metadata["limit"] == "512"
        assert value is None or error.metadata["value"] == str(value)

    @pytest.mark.parametrize(
        "prompt", ["x" * ((4 << 20) + 1), ChatPrompt(Chat([ChatMessage(Role.USER, "é" * (2 << 20))]))]
    )
    async def test_a_text_that_is_too_large(self, stage: Stage, prompt: str | ChatPrompt) -> None:
        error = await self.refused(stage, replace(SPEC, prompt=prompt))
        assert error.reason is Reason.INPUT_TOO_LARGE

    async def test_options_outside_their_limits(self, stage: Stage) -> None:
        error = await self.refused(stage, replace(SPEC, options=Options(n=17)))
        assert error.metadata["field"] == "spec.sampling.n"

    async def test_more_tokens_demanded_than_fit(self, stage: Stage) -> None:
        error = await self.refused(stage, replace(SPEC, prompt=(5,) * 500, options=Options(min_tokens=13)))
        assert error.metadata == {"field": "spec.sampling.min_tokens", "limit": "at most 12", "value": "13"}

    async def test_a_deadline_that_has_passed(self, stage: Stage) -> None:
        with pytest.raises(ArgosyError) as late:
            await stage.service.generate(
                replace(SPEC, prompt="word " * 5000), request_id="r", deadline=time.monotonic() - 1
            )
        assert late.value.reason is Reason.DEADLINE_EXCEEDED


async def test_the_fullest_context_is_taken(stage: Stage) -> None:
    stage.says("x")
    await stage.service.generate(replace(SPEC, prompt=(5,) * 511), request_id="r")
    await stage.service.generate(replace(SPEC, prompt=(5,) * 500, options=Options(max_tokens=12)), request_id="r")
    assert [request.max_tokens for request in stage.engine.submitted] == [1, 12]


LONG = "on and on " * 40
LEASED = GenerationSpec(prompt="Say something", adapter="pirate", options=Options(n=3))


class TestEnds:
    """However a request ends, the engine and the adapter are free again."""

    @pytest.fixture(autouse=True)
    async def free(self, stage: Stage) -> AsyncIterator[None]:
        stage.engine.step_s = 0.002
        stage.says(LONG)
        yield
        await stage.idle()
        assert stage.leases.given == 1

    async def test_the_adapter_is_held_while_it_is_used(self, stage: Stage) -> None:
        stage.says("short")
        held = []
        async for event in stage.service.stream(LEASED, request_id="r"):
            held.append(stage.leases.held)
            if isinstance(event, Started):
                assert (event.origin.adapter, event.origin.adapter_version) == ("pirate", "v1")
        assert held[0] == 1
        assert [request.adapter for request in stage.engine.submitted] == ["key-of-pirate"] * 3

    async def test_closed_midway(self, stage: Stage) -> None:
        async with aclosing(stage.service.stream(LEASED, request_id="r")) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
        assert len(stage.engine.cancelled) == 3

    async def test_cancelled_midway(self, stage: Stage) -> None:
        task = asyncio.create_task(stage.service.generate(LEASED, request_id="r"))
        await eventually(lambda: stage.engine.callbacks > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(stage.engine.cancelled) == 3

    async def test_cancelled_while_it_waits(self, stage: Stage) -> None:
        stage.engine.going.clear()
        task = asyncio.create_task(stage.service.generate(LEASED, request_id="r"))
        await eventually(lambda: len(stage.engine.running) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not stage.engine.running
        stage.engine.going.set()

    async def test_the_deadline(self, stage: Stage) -> None:
        with pytest.raises(ArgosyError) as late:
            await stage.service.generate(LEASED, request_id="r", deadline=time.monotonic() + 0.05)
        assert late.value.reason is Reason.DEADLINE_EXCEEDED
        assert len(stage.engine.cancelled) == 3

    async def test_the_adapter_is_taken_away(self, stage: Stage) -> None:
        task = asyncio.create_task(stage.service.generate(LEASED, request_id="r"))
        await eventually(lambda: stage.engine.callbacks > 2)
        assert stage.leases.revoke is not None
        stage.leases.revoke()
        assert not stage.engine.running
        with pytest.raises(ArgosyError) as gone:
            await task
        assert gone.value.reason is Reason.ADAPTER_NOT_READY
        assert gone.value.metadata == {"adapter": "pirate", "state": "draining"}

    async def test_the_adapter_is_taken_away_before_it_is_there(self, stage: Stage) -> None:
        stage.leases.coming = True
        task = asyncio.create_task(stage.service.generate(LEASED, request_id="r"))
        await eventually(lambda: stage.leases.held == 1)
        assert stage.leases.revoke is not None
        stage.leases.revoke()
        with pytest.raises(ArgosyError) as gone:
            await task
        assert gone.value.reason is Reason.ADAPTER_NOT_READY
        assert not stage.engine.submitted

    async def test_one_choice_fails(self, stage: Stage) -> None:
        fault = ArgosyError(Reason.ENGINE_FAILED, "it broke")
        stage.says(LONG, LONG)
        stage.scripts[1] = replace(stage.scripts[1], fail_at=5, error=fault)
        with pytest.raises(ArgosyError) as failed:
            await read(stage, LEASED)
        assert failed.value is fault
        assert len(stage.engine.cancelled) == 1

    async def test_the_queue_is_full(self, stage: Stage) -> None:
        stage.engine.max_running = 2
        with pytest.raises(ArgosyError) as full:
            await stage.service.generate(LEASED, request_id="r")
        assert full.value.reason is Reason.QUEUE_FULL
        assert len(stage.engine.cancelled) == 2

    async def test_the_service_is_closed(self, stage: Stage) -> None:
        task = asyncio.create_task(stage.service.generate(LEASED, request_id="r"))
        await eventually(lambda: stage.engine.callbacks > 2)
        stage.service.close()
        with pytest.raises(ArgosyError) as closed:
            await task
        assert closed.value.reason is Reason.DRAINING


async def test_a_failure_hurts_nobody_else(stage: Stage) -> None:
    fault = ArgosyError(Reason.ENGINE_FAILED, "it broke")
    good, bad = [*stage.ids(LONG), EOS], stage.ids("bad")
    stage.engine.script = lambda request: (
        Script(good, fail_at=7, error=fault) if request.prompt == bad else Script(good)
    )
    specs = [replace(SPEC, prompt="bad" if number % 3 == 0 else "good") for number in range(12)]
    answers = await asyncio.gather(
        *(stage.service.generate(spec, request_id="r") for spec in specs), return_exceptions=True
    )
    for spec, answer in zip(specs, answers, strict=True):
        if spec.prompt == "bad":
            assert answer is fault
        else:
            assert not isinstance(answer, BaseException)
            assert answer.choices[0].text == LONG
    await stage.idle()


async def test_many_at_once_get_their_own_text(stage: Stage) -> None:
    stage.engine.script = lambda request: Script([*request.prompt, EOS], burst=1 + len(request.prompt) % 3)
    texts = [f"request {number} says 🙂 {'x' * number}" for number in range(50)]
    answers = await asyncio.gather(
        *(stage.service.generate(replace(SPEC, prompt=text), request_id="r") for text in texts)
    )
    assert [answer.choices[0].text for answer in answers] == texts
    await stage.idle()


def test_models_are_described(stage: Stage) -> None:
    (model,) = stage.service.models()
    assert model == stage.service.model("") == stage.service.model(model.name)
    assert model.is_default
    assert model.engine == stage.engine.info
    assert model.tokenizer_fingerprint == stage.tokenizer.fingerprint
    assert isinstance(stage.service, GenerationService)
