"""Requests from submission to their end."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import EOS, Bench, MakeBench, ask, eventually, tokens

from argosy_services.engine.base import Finish, Grammar, GrammarKind, Sampling
from argosy_services.errors import ArgosyError, Reason


def test_tokens_come_once_and_in_order(either: Bench) -> None:
    """Fails when `token_ids` is read instead of `token_ids_diff`: the former holds all of them, each time."""
    outputs = either.run(ask(stop_token_ids=frozenset()))
    assert len(tokens(outputs)) == 5
    assert len(outputs) > 1
    assert [output.finish for output in outputs] == [*[None] * (len(outputs) - 1), Finish.LENGTH]


def test_greedy_answers_are_alike(either: Bench) -> None:
    """Fails when temperature 0 is handed on as 1: the seed would then decide."""
    answers = [
        tokens(either.run(ask(f"r{seed}", sampling=Sampling(temperature=0.0, seed=seed), stop_token_ids=frozenset())))
        for seed in (1, 2)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 5


def test_seeds_decide(bench: MakeBench) -> None:
    """Fails when the seed does not reach the library."""
    engine = bench()

    def draw(name: str, seed: int) -> list[int]:
        return tokens(engine.run(ask(name, sampling=Sampling(seed=seed), stop_token_ids=frozenset())))

    assert draw("a", 1) == draw("b", 1) != draw("c", 2)


def test_requests_are_made_on_the_engines_loop(bench: MakeBench, control: Any) -> None:
    """Fails when generate_async is called on the thread of `submit`, where no loop runs, or read on another loop."""
    bench().run(ask())
    assert control.threads == {"engine-tiny"}
    assert control.results[0]._loop is not None


def test_the_end_token_ends(bench: MakeBench, control: Any) -> None:
    """Fails when the model's end token is given as a stop word, for which the library has leaked memory."""
    control.answer = [7, 8, EOS, 9]
    outputs = bench().run(ask(max_tokens=9))
    params = control.calls[0]["params"]
    assert (params.end_id, params.stop_token_ids) == (EOS, None)
    assert tokens(outputs) == [7, 8, EOS]
    assert outputs[-1].finish is Finish.STOP


def test_a_stop_token_ends_and_is_the_last(bench: MakeBench, control: Any) -> None:
    """Fails when a stop token that the library took away is not put back: readers tell it by its place at the end.

    As with our own engine it comes with the end and at no other place, which is how text never shows it.
    """
    control.answer = [7, 8, 9, 10]
    outputs = bench().run(ask(max_tokens=9, stop_token_ids=frozenset({EOS, 9})))
    assert tokens(outputs) == [7, 8, 9]
    assert outputs[-1].finish is Finish.STOP
    assert outputs[-1].token_ids == (9,)


def test_an_end_token_that_the_library_keeps_for_itself(bench: MakeBench, control: Any) -> None:
    """Fails when an end without a stop reason is not taken as an end."""
    control.answer, control.keeps_end_token = [7, EOS], False
    outputs = bench().run(ask(max_tokens=9))
    assert tokens(outputs) == [7]
    assert outputs[-1].finish is Finish.STOP


def test_nothing_after_a_stop_token(bench: MakeBench, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when `_cut` lets tokens after a stop token through, or leaves the library running behind it."""
    import tensorrt_llm

    monkeypatch.setattr(tensorrt_llm.LLM, "_finish", lambda self, response, params, last: None)
    control.answer, control.step_s = [7, 9, 8], 0.005
    engine = bench()
    outputs = engine.run(ask(max_tokens=200, stop_token_ids=frozenset({9})))
    assert tokens(outputs) == [7, 9]
    assert outputs[-1].finish is Finish.STOP
    eventually(lambda: control.llms[0].running == 0, seconds=0.5)


def test_running_past_the_end_token(bench: MakeBench, control: Any) -> None:
    """Fails when the library adds the model's end tokens on its own."""
    control.answer = [7, EOS]
    outputs = bench().run(ask(max_tokens=4, stop_token_ids=frozenset()))
    assert tokens(outputs) == [7, EOS, 7, EOS]
    assert outputs[-1].finish is Finish.LENGTH


def test_parameters_are_never_shared(bench: MakeBench, control: Any) -> None:
    """Fails when two requests get one SamplingParams object; the stand-in reports it."""
    engine = bench()
    for name in "abc":
        engine.engine.submit(ask(name))
    for name in "abc":
        engine.wait(name)
    assert len({id(params) for params in control.seen_params}) == 3


def test_what_comes_together_is_handed_out_together(bench: MakeBench) -> None:
    """Fails when every output is handed out by itself."""
    engine = bench()
    names = [f"r{at}" for at in range(20)]
    for name in names:
        engine.engine.submit(ask(name, max_tokens=50, stop_token_ids=frozenset()))
    for name in names:
        engine.wait(name)
    assert max(len(step) for step in engine.steps) > 5
    assert len(engine.steps) < 20 * 50 / 2


def test_timings_come_first_and_last(bench: MakeBench, control: Any) -> None:
    """Fails when timings are left out, or come with every token."""
    control.step_s = 0.01
    outputs = bench().run(ask(stop_token_ids=frozenset()))
    assert [output.timings is not None for output in outputs] == [True, False, False, False, True]
    last = outputs[-1].timings
    assert last is not None
    assert last.prefill_s > 0
    assert last.decode_s >= 0.03


def test_log_probabilities(either: Bench) -> None:
    """Fails when `logprobs` is read instead of `logprobs_diff`, or the drawn token is taken from the wrong place."""
    asked = Sampling(temperature=0.0, logprobs=2)
    outputs = either.run(ask(sampling=asked, stop_token_ids=frozenset()))
    assert len(tokens(outputs)) == 5
    for output in outputs:
        assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
        for entry in output.logprobs:
            assert entry.logprob <= 0
            assert len(entry.top) == 2
            assert entry.top[0][1] >= entry.top[1][1]


def test_only_the_drawn_tokens_log_probability(either: Bench) -> None:
    """Fails when logprobs=0 is handed on, which is "off" for the library, or is taken for "off" in the stream."""
    outputs = either.run(ask(sampling=Sampling(temperature=0.0, logprobs=0), stop_token_ids=frozenset()))
    assert len(tokens(outputs)) == 5
    assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)
    assert all(entry.top == () for output in outputs for entry in output.logprobs)


def test_log_probabilities_that_are_missing_are_not_made_up(bench: MakeBench, control: Any) -> None:
    """Fails when the likeliest token's log-probability stands in for the drawn one's."""
    control.hides_drawn, control.answer = True, [40]
    (output,) = bench().run(ask(sampling=Sampling(temperature=0.0, logprobs=2)))
    assert output.error is not None
    assert output.error.reason is Reason.NOT_SUPPORTED


@pytest.mark.parametrize("form", ["short", "leading", "trailing"])
def test_scores_belong_to_their_tokens(bench: MakeBench, control: Any, form: str) -> None:
    """Fails when positions are off by one for any of the forms in which the library may tell them."""
    control.prompt_logprobs = form
    request = ask(prompt=[5, 6, 7, 8], max_tokens=0, score_from=2, sampling=Sampling(temperature=0.0, logprobs=1))
    (output,) = bench().run(request)
    assert output.token_ids == ()
    assert [entry.token_id for entry in output.logprobs] == [7, 8]
    assert output.finish is Finish.STOP


def test_scoring_twice_gives_the_same(either: Bench) -> None:
    """Fails when scoring requests share the cache: positions that come out of it have no log-probabilities."""
    prompt = list(range(5, 60))
    found = []
    for name in ("a", "b"):
        asked = Sampling(temperature=0.0, logprobs=1)
        (output,) = either.run(ask(name, prompt=prompt, max_tokens=0, score_from=3, sampling=asked))
        assert [entry.token_id for entry in output.logprobs] == prompt[3:]
        found.append([round(entry.logprob, 2) for entry in output.logprobs])
    assert found[0] == found[1]


def test_structured_output(either: Bench) -> None:
    """Fails when the library is made without a guided decoding backend."""
    outputs = either.run(ask(grammar=Grammar(GrammarKind.REGEX, "[ab]+"), max_tokens=3))
    assert outputs[-1].finish is not Finish.FAILED


def test_grammars_are_checked_before_they_run(bench: MakeBench) -> None:
    """Fails when `check_grammar` compiles nothing, or takes Lark."""
    engine = bench().engine
    engine.check_grammar(Grammar(GrammarKind.JSON_SCHEMA, '{"type": "integer"}'))
    engine.check_grammar(Grammar(GrammarKind.REGEX, "[0-9]+"))
    for kind, source, reason in (
        (GrammarKind.JSON_SCHEMA, '{"type": 3}', Reason.INVALID_GRAMMAR),
        (GrammarKind.REGEX, "[", Reason.INVALID_GRAMMAR),
        (GrammarKind.LARK, "start: /a/", Reason.NOT_SUPPORTED),
    ):
        with pytest.raises(ArgosyError) as raised:
            engine.check_grammar(Grammar(kind, source))
        assert raised.value.reason is reason
    with pytest.raises(ArgosyError, match="Lark"):
        engine.submit(ask(grammar=Grammar(GrammarKind.LARK, "start: /a/")))


def test_what_can_never_run_is_refused(bench: MakeBench) -> None:
    """Fails when prompt and answer are not held against the context."""
    with pytest.raises(ArgosyError) as raised:
        bench().engine.submit(ask(max_tokens=254))
    assert raised.value.reason is Reason.KV_CACHE_FULL


def test_a_full_queue_is_refused_and_places_come_back(bench: MakeBench, control: Any) -> None:
    """Fails when a finished or failed request keeps its place."""
    control.step_s = 0.01
    engine = bench(max_batch=1, max_waiting=1)
    for _ in range(3):
        engine.steps.clear()
        engine.engine.submit(ask("a"))
        engine.engine.submit(ask("b"))
        with pytest.raises(ArgosyError) as raised:
            engine.engine.submit(ask("c"))
        assert raised.value.reason is Reason.QUEUE_FULL
        engine.wait("a")
        engine.wait("b")
        eventually(lambda: len(engine.engine._thread._door) == 0)


def test_prompts_longer_than_a_step(bench: MakeBench) -> None:
    """Fails when chunked prefill is off in pytorch mode: the library refuses prompts above max_num_tokens."""
    outputs = bench(own={"max_batch_tokens": 64}).run(ask(prompt=list(range(3, 203))))
    assert outputs[-1].error is None


def test_a_salt_for_whom_the_cache_is(bench: MakeBench, control: Any) -> None:
    """Fails when a tenant can find what another one has computed."""
    engine = bench()
    requests = [
        ask("nobody"),
        ask("a", tenant="a"),
        ask("a again", tenant="a"),
        ask("b", tenant="b"),
        ask("pepper", tenant="a", cache_salt="pepper"),
    ]
    for request in requests:
        engine.run(request)
    nobody, first, again, other, salted = (call["salt"] for call in control.calls[-5:])
    assert nobody is None
    assert first == again
    assert len({first, other, salted}) == 3


def test_what_nobody_waits_for_is_ended(bench: MakeBench, control: Any) -> None:
    """Fails when a deadline ends nothing, or when its timer outlives the request."""
    control.step_s = 0.05
    engine = bench()
    outputs = engine.run(ask(max_tokens=200, stop_token_ids=frozenset(), timeout_s=0.2))
    assert outputs[-1].finish is Finish.FAILED
    assert outputs[-1].error is not None
    assert outputs[-1].error.reason is Reason.DEADLINE_EXCEEDED
    eventually(lambda: len(engine.engine._thread._door) == 0)
    control.step_s = 0.0
    assert engine.run(ask("in time", timeout_s=30.0))[-1].error is None
