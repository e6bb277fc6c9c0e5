"""Whoever goes first, everybody's tokens are those of transformers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from argosy_services.engine.base import Finish, Request, Sampling, StepOutput
from argosy_services.engine.factory import create_engine
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel

from .conftest import Collector, greedy_errors, settings

GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def engine_with(smollm2: LocalModel) -> Iterator[Callable[..., Collector]]:
    made: list[Collector] = []

    def make(**changes: Any) -> Collector:
        tokenizer = (smollm2.path / "tokenizer.json").read_text()
        made.append(Collector(create_engine(smollm2, settings(**changes), tokenizer)))
        return made[-1]

    yield make
    for collector in made:
        collector.engine.check_integrity().result(10)  # type: ignore[attr-defined]
        assert collector.engine.stats().kv_blocks_in_use == 0
        collector.engine.close()


def test_what_is_put_back_again_and_again_ends_as_if_alone(
    engine_with: Callable[..., Collector], reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    """Few places, few blocks, a small step: prompts in pieces, put back for others, found again in the cache."""
    collector = engine_with(kv_cache_tokens=256, max_batch=3, max_step_tokens=40, block_tokens=8)
    chosen = [prompt for prompt in prompts if 24 <= len(prompt) <= 80][:12]
    requests = [
        # Every prompt comes twice from one tenant, so that the second one shares the blocks of the first.
        Request(str(at), chosen[at // 2], 14, GREEDY, tenant=str(at // 2 % 3), priority=at * 5 // 24 - 2)
        for at in range(2 * len(chosen))
    ]
    waiting = list(requests)

    def submit_another(output: StepOutput) -> None:
        # One comes for every other token, and each is more important than those before it.
        if waiting and len(collector.answers[output.request_id].tokens) % 2:
            collector.engine.submit(waiting.pop(0))

    collector.on_token = submit_another
    for _ in range(4):
        collector.engine.submit(waiting.pop(0))
    answers = collector.wait([request.id for request in requests])
    assert collector.engine.stats().preemptions > 4
    for request in requests:
        answer = answers[request.id]
        assert len(answer.tokens) == 14
        assert greedy_errors(reference, request.prompt, answer.tokens) == [], request.id


def test_a_cache_is_its_tenants_own(engine_with: Callable[..., Collector], prompts: list[list[int]]) -> None:
    collector = engine_with()
    cached: dict[str, int] = {}
    collector.on_token = lambda output: cached.update({output.request_id: output.cached_tokens})
    prompt = next(prompt for prompt in prompts if len(prompt) == 100)
    standing: list[dict[str, str]] = [{"tenant": "a"}, {"tenant": "a"}, {"tenant": "b"}, {"cache_salt": "a"}, {}]
    answers = [
        collector.run([Request(str(at), prompt, 2, GREEDY, **given)])[str(at)] for at, given in enumerate(standing)
    ]
    assert [cached[str(at)] for at in range(5)] == [0, 96, 0, 0, 0]
    assert len({tuple(answer.tokens) for answer in answers}) == 1


def test_what_nobody_waits_for_is_given_up(
    engine_with: Callable[..., Collector], reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    collector = engine_with(max_batch=1)
    answers = collector.run(
        [
            Request("running", prompts[3], 2_000, GREEDY, timeout_s=2.0),
            Request("waiting", prompts[3], 4, GREEDY, timeout_s=0.5),
            Request("patient", prompts[3], 4, GREEDY, timeout_s=200.0),
        ]
    )
    for name in ("running", "waiting"):
        error = answers[name].error
        assert isinstance(error, ArgosyError)
        assert error.reason is Reason.DEADLINE_EXCEEDED
    assert answers["running"].tokens
    assert answers["waiting"].tokens == []
    assert answers["patient"].finish is Finish.LENGTH
    assert greedy_errors(reference, prompts[3], answers["patient"].tokens) == []


def test_prompts_that_would_wait_too_long_are_refused(
    engine_with: Callable[..., Collector], prompts: list[list[int]]
) -> None:
    collector = engine_with(max_batch=1, max_waiting_tokens=150)
    long = next(prompt for prompt in prompts if len(prompt) == 100)
    first = Request("running", long, 500, GREEDY)
    started = threading.Event()
    collector.on_token = lambda _: started.set()
    collector.engine.submit(first)
    assert started.wait(60)
    collector.engine.submit(Request("waiting", long, 2, GREEDY))
    with pytest.raises(ArgosyError) as refused:
        collector.engine.submit(Request("too much", long, 2, GREEDY))
    assert refused.value.reason is Reason.QUEUE_FULL
    assert refused.value.metadata == {"limit": "150", "value": "100"}
    assert refused.value.retry_after_s
    # The limit can be changed while it runs.
    collector.engine.max_waiting_tokens = 1_000
    collector.engine.submit(Request("too much", long, 2, GREEDY))
    collector.engine.cancel("running")
    answers = collector.wait(["waiting", "too much"])
    assert answers["waiting"].tokens == answers["too much"].tokens
