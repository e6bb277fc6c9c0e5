"""Whoever goes first, everybody's tokens are those of transformers."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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


def test_scores_that_were_put_back_are_those_of_one_read(engine_with: Callable[..., Collector]) -> None:
    prompt = [100 + at for at in range(300)]
    scored = Request("scored", prompt, 0, Sampling(temperature=0.0, logprobs=1), score_from=10, priority=-1)
    expected = engine_with().run([scored])["scored"].logprobs
    collector = engine_with(max_batch=1, max_step_tokens=16)
    collector.engine.submit(scored)
    while collector.engine.stats().steps < 4:
        time.sleep(0.001)
    collector.engine.submit(Request("urgent", [5] * 8, 1, GREEDY))
    answers = collector.wait(["scored", "urgent"])
    assert collector.engine.stats().preemptions == 1
    assert [entry.token_id for entry in answers["scored"].logprobs] == prompt[10:]
    assert [entry.logprob for entry in answers["scored"].logprobs] == pytest.approx(
        [entry.logprob for entry in expected], abs=1e-4
    )


@pytest.mark.parametrize("form", ["torch", "float32", "bfloat16", "int8"])
def test_no_request_can_stop_the_others(engine_with: Callable[..., Collector], tmp_path: Path, form: str) -> None:
    """Neither the smallest penalty, nor an adapter whose numbers grow beyond all bounds, then and later."""
    forms = {"torch": {"kernels": "torch"}, "int8": {"dtype": "bfloat16", "quantization": "int8"}}
    collector = engine_with(**forms.get(form, {"dtype": form, "quantization": "none"}))
    collector.engine.load_adapter("huge", collector.engine.read_adapter(_huge_adapter(tmp_path))).result(10)
    drawn = Sampling(temperature=1.0, seed=1)
    requests = [
        Request("other", [100] * 20, 60, GREEDY),
        Request("penalty", list(range(100, 400)), 20, replace(drawn, repetition_penalty=1e-38)),
        Request("whole", [100, 200], 20, drawn, adapter="huge"),
        Request("cut", [100, 200], 20, replace(drawn, top_p=0.9, logprobs=1), adapter="huge"),
        Request("greedy", [100, 200], 20, GREEDY, adapter="huge"),
    ]
    answers = collector.run(requests)
    assert (len(answers["other"].tokens), len(answers["penalty"].tokens)) == (60, 20)
    # Products of eight bits make some number of anything.
    for name in () if form == "int8" else ("whole", "cut"):
        error = answers[name].error
        assert isinstance(error, ArgosyError)
        assert (error.reason, error.metadata["adapter"]) == (Reason.ADAPTER_INVALID, "huge")
    # What lies in the blocks of the failed ones is hidden from whoever has them next.
    later = [Request(f"later {at}", [100 + at] * (9 + 7 * at), 12, replace(drawn, logprobs=1)) for at in range(4)]
    for _ in range(2):
        for answer in collector.run(later).values():
            assert (answer.error, len(answer.tokens)) == (None, 12)
            assert all(math.isfinite(entry.logprob) for entry in answer.logprobs)


def _huge_adapter(directory: Path) -> Path:
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["o_proj"]}
    name = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
    shapes = {"A": (1, 576), "B": (576, 1)}
    factors = {name.format(at, which): torch.full(shapes[which], 1e30) for at in range(30) for which in shapes}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(factors, directory / "adapter_model.safetensors")
    return directory


def test_no_more_sequences_run_than_a_step_has_tokens_for(engine_with: Callable[..., Collector]) -> None:
    """Those beyond would hold their places and get no token while the others run."""
    collector = engine_with(max_batch=40, max_step_tokens=16, speculation="off")
    running: list[int] = []
    collector.on_token = lambda _: running.append(collector.engine.stats().running)
    answers = collector.run([Request(str(at), [100 + at], 20, GREEDY) for at in range(20)])
    assert [len(answer.tokens) for answer in answers.values()] == [20] * 20
    assert max(running) == 16
