"""Cancellation, failures, and what comes after the library died."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import Bench, MakeBench, ask, eventually, tokens

from argosy_services.engine.base import Finish, Grammar, GrammarKind, Sampling
from argosy_services.engine.tensorrt_llm import loop
from argosy_services.errors import ArgosyError, Reason


def test_cancelling_frees_the_request(either: Bench, control: Any) -> None:
    """Fails when `cancel` only stops reading: the library would go on to max_tokens."""
    control.step_s = 0.01
    either.engine.submit(ask(max_tokens=200, stop_token_ids=frozenset()))
    either.wait("r", finished=False)
    either.engine.cancel("r")
    eventually(lambda: len(either.engine._thread._door) == 0)
    assert all(output.finish is None for output in either.of("r"))


def test_a_cancelled_request_is_over_in_the_library_too(bench: MakeBench, control: Any) -> None:
    """Fails when `cancel` does not call abort()."""
    control.step_s = 0.005
    engine = bench()
    engine.engine.submit(ask(max_tokens=200, stop_token_ids=frozenset()))
    engine.wait("r", finished=False)
    engine.engine.cancel("r")
    eventually(lambda: control.llms[0].running == 0, seconds=0.4)
    assert control.results[0].aborted()
    count = len(engine.of("r"))
    time.sleep(0.05)
    assert len(engine.of("r")) == count


def test_cancelling_before_it_runs(bench: MakeBench, control: Any) -> None:
    """Fails when a request that was cancelled before its first turn is not aborted once it has been made."""
    control.step_s = 0.005
    engine = bench()
    engine.engine.submit(ask(max_tokens=200, stop_token_ids=frozenset()))
    engine.engine.cancel("r")
    eventually(lambda: len(engine.engine._thread._door) == 0, seconds=0.5)
    assert engine.of("r") == []


def test_cancelling_twice_or_nobody(either: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Fails when `cancel` of an unknown or finished request raises on the engine's loop."""
    either.engine.cancel("nobody")
    either.run(ask())
    either.engine.cancel("r")
    either.engine.cancel("r")
    assert either.run(ask("after"))[-1].finish is not Finish.FAILED
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_one_failed_request_is_its_own(bench: MakeBench, control: Any) -> None:
    """Fails when RequestError is taken for the end of the library, or the result is read again after it."""
    engine = bench()
    control.fail_next = "out of luck"
    (failed,) = engine.run(ask("a"))
    assert failed.error is not None
    assert failed.error.reason is Reason.ENGINE_FAILED
    assert "out of luck" in failed.error.message
    assert engine.engine.healthy
    assert engine.run(ask("b"))[-1].finish is Finish.LENGTH
    assert len(control.llms) == 1


def test_a_grammar_that_only_the_library_refuses(bench: MakeBench, control: Any) -> None:
    """Fails when the failure of a grammar is told as one of the engine."""
    control.fail_next = "xgrammar: Grammar error: unsupported keyword"
    (output,) = bench().run(ask(grammar=Grammar(GrammarKind.REGEX, "a")))
    assert output.error is not None
    assert output.error.reason is Reason.INVALID_GRAMMAR


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("timeout", Reason.DEADLINE_EXCEEDED), ("cancelled", Reason.ENGINE_FAILED), ("odd", Reason.ENGINE_FAILED)],
)
def test_ends_that_are_no_answers(bench: MakeBench, control: Any, reason: str, expected: Reason) -> None:
    """Fails when 'timeout', 'cancelled' by others, or an unknown end is taken for STOP."""
    control.finish_next = reason
    (output,) = bench().run(ask())
    assert output.finish is Finish.FAILED
    assert output.error is not None
    assert output.error.reason is expected


def test_closing_ends_what_runs(bench: MakeBench, control: Any) -> None:
    """Fails when closing leaves requests without an end, in the library or to their callers, or blocks the loop."""
    control.step_s = 0.01
    engine = bench()
    engine.engine.submit(ask(max_tokens=200))
    engine.wait("r", finished=False)
    engine.engine.close()
    last = engine.of("r")[-1]
    assert last.error is not None
    assert last.error.reason is Reason.DRAINING
    assert control.llms[0].shut_down
    assert control.results[0].aborted()
    with pytest.raises(ArgosyError) as raised:
        engine.engine.submit(ask("late"))
    assert raised.value.reason is Reason.ENGINE_FAILED


def test_closing_before_the_start(model: Any, control: Any) -> None:
    """Fails when an engine that was never started keeps the library."""
    from tests.unit.engine.tensorrt_llm.conftest import settings

    from argosy_services.engine.factory import create_engine

    create_engine(model, settings(), "{}").close()
    assert control.llms[0].shut_down


def test_the_librarys_death_ends_those_that_wait(bench: MakeBench, control: Any) -> None:
    """Fails when health is not watched (whoever waits for a response is told nothing), or places are lost."""
    control.step_s = 0.01
    engine = bench()
    engine.engine.submit(ask("a", max_tokens=200))
    engine.engine.submit(ask("b", max_tokens=200))
    engine.wait("b", finished=False)
    control.llms[0].die()
    for name in "ab":
        last = engine.wait(name)[-1]
        assert last.error is not None
        assert last.error.reason is Reason.ENGINE_FAILED
    eventually(lambda: len(engine.engine._thread._door) == 0)


def test_after_its_death_the_library_is_started_again(bench: MakeBench, control: Any) -> None:
    """Fails when no new LLM is made, the dead one is not shut down, or places are lost."""
    engine = bench(max_batch=1, max_waiting=0)
    engine.run(ask("a"))
    control.llms[0].die()
    eventually(lambda: len(control.llms) == 2 and engine.engine.stats().ready)
    assert control.llms[0].shut_down
    assert tokens(engine.run(ask("b"))) == tokens(engine.of("a"))


def test_death_between_two_requests(bench: MakeBench, control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when RuntimeError of generate_async does not lead to a new start, or its request gets no answer."""
    monkeypatch.setattr(loop, "_HEALTH_S", 3600)
    engine = bench()
    control.llms[0].die()
    last = engine.run(ask("a"))[-1]
    assert last.error is not None
    assert last.error.reason is Reason.ENGINE_FAILED
    eventually(lambda: engine.takes and len(control.llms) == 2)


def test_an_engine_that_starts_again_is_not_given_up(bench: MakeBench, control: Any) -> None:
    """Fails when the time until the library runs again is taken for the engine's end."""
    engine = bench(own={"restart_delay_s": 60})
    control.llms[0].die()
    eventually(lambda: not engine.engine.stats().ready)
    assert engine.engine.healthy
    with pytest.raises(ArgosyError) as raised:
        engine.engine.submit(ask())
    assert raised.value.reason is Reason.ENGINE_FAILED
    engine.engine.close()
    assert not engine.engine.healthy


def test_attempts_are_bounded(bench: MakeBench, control: Any) -> None:
    """Fails when the library is started again without end, or an engine that gave up still takes requests."""
    engine = bench(own={"max_restarts": 2})
    control.failing_constructions = 100
    control.llms[0].die()
    eventually(lambda: not engine.engine._thread.is_alive())
    assert control.failing_constructions == 98
    assert not engine.engine.healthy
    with pytest.raises(ArgosyError) as raised:
        engine.engine.submit(ask())
    assert raised.value.reason is Reason.ENGINE_FAILED
    assert engine.engine.stats().running == 0


def test_a_success_gives_attempts_back(bench: MakeBench, control: Any) -> None:
    """Fails when attempts are counted over the engine's whole life."""
    engine = bench(own={"max_restarts": 1})
    for death in range(3):
        engine.run(ask(f"r{death}"))
        control.llms[-1].die()
        eventually(lambda death=death: len(control.llms) == death + 2 and engine.takes)


def test_a_failed_attempt_is_followed_by_another(bench: MakeBench, control: Any) -> None:
    """Fails when the first failed attempt ends the engine."""
    engine = bench()
    control.failing_constructions = 2
    control.llms[0].die()
    eventually(lambda: engine.takes and len(control.llms) == 2)
    assert engine.run(ask())[-1].error is None


def test_a_compiled_engine_is_never_asked_to_abort_logprobs(compiled: MakeBench, control: Any) -> None:
    """Fails when such a stream is aborted, which ends the compiled engine; it runs on unread, and keeps its place."""
    control.step_s = 0.002
    engine = compiled(logprobs=True)
    asked = Sampling(temperature=0.0, logprobs=1)
    engine.engine.submit(ask(max_tokens=40, sampling=asked, stop_token_ids=frozenset()))
    engine.wait("r", finished=False)
    engine.engine.cancel("r")
    count = len(engine.of("r"))
    assert len(engine.engine._thread._door) == 1
    eventually(lambda: len(engine.engine._thread._door) == 0)
    assert len(engine.of("r")) <= count + 1
    assert control.results[-1].finished
    assert control.llms[-1]._check_health()
    control.violations = [found for found in control.violations if "leaked" not in found]


def test_in_pytorch_mode_log_probabilities_are_aborted(bench: MakeBench, control: Any) -> None:
    """Fails when the exception for compiled engines is made for all."""
    control.step_s = 0.005
    engine = bench()
    engine.engine.submit(ask(max_tokens=200, sampling=Sampling(temperature=0.0, logprobs=1)))
    engine.wait("r", finished=False)
    engine.engine.cancel("r")
    eventually(lambda: control.llms[0].running == 0, seconds=0.4)


def test_a_compiled_engine_without_logits(compiled: MakeBench) -> None:
    """Fails when log-probabilities are asked of an engine that was compiled without them."""
    engine = compiled()
    for request in (
        ask(sampling=Sampling(logprobs=1)),
        ask(max_tokens=0, score_from=1, sampling=Sampling(temperature=0.0, logprobs=1)),
    ):
        with pytest.raises(ArgosyError, match="argosy compile --logprobs") as raised:
            engine.engine.submit(request)
        assert raised.value.reason is Reason.NOT_SUPPORTED


def test_a_compiled_engines_prompt_limit(compiled: MakeBench) -> None:
    """Fails when the compiled engine's longest prompt is not looked at: the library does not look either."""
    with pytest.raises(ArgosyError) as raised:
        compiled().engine.submit(ask(prompt=list(range(201))))
    assert raised.value.reason is Reason.KV_CACHE_FULL


def test_scoring_the_longest_prompt(compiled: MakeBench) -> None:
    """Fails when scoring draws two tokens, or a build that names no longest prompt takes the whole sequence for it."""
    asked = ask(prompt=[5] * 255, max_tokens=0, score_from=1, sampling=Sampling(temperature=0.0, logprobs=1))
    (output,) = compiled(logprobs=True, build={"max_input_len": 0}).run(asked)
    assert output.error is None
    assert len(output.logprobs) == 254


def test_what_the_library_refuses_is_the_callers(compiled: MakeBench) -> None:
    """Fails when a ValueError of generate_async is told as a fault of the engine."""
    engine = compiled()
    engine.engine._check_size = lambda request: None
    (output,) = engine.run(ask(max_tokens=1000))
    assert output.error is not None
    assert output.error.reason is Reason.INVALID_FIELD
    assert "max_seq_len" in output.error.message
    assert engine.engine.healthy
