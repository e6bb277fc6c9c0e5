"""Guessing ahead changes no token: greedy, sampled, under grammars and penalties, with a small cache."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from argosy_services import metrics
from argosy_services.engine.base import Engine, Finish, Grammar, GrammarKind, Request, Sampling
from argosy_services.engine.factory import create_engine
from argosy_services.models.types import LocalModel

from .conftest import Answer, Collector, greedy_errors, settings

GREEDY = Sampling(temperature=0.0)
SCHEMA = json.dumps(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": {"enum": ["boat", "harbour"]}, "size": {"type": "integer", "maximum": 99}},
            "required": ["name", "size"],
            "additionalProperties": False,
        },
        "minItems": 3,
        "maxItems": 3,
    }
)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": Sampling(temperature=0.8, top_p=0.9, seed=11),
    "penalties": Sampling(
        temperature=0.7, top_k=40, seed=5, repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2
    ),
    "bias and log-probabilities": Sampling(temperature=0.0, logit_bias={30: 2.0}, logprobs=2),
}


@pytest.fixture(scope="module")
def small_draft(smollm2: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """The first layers of the same model: a poor guesser, but one that is right now and then."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("draft")
    model = AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32)
    model.model.layers = model.model.layers[:8]
    model.config.num_hidden_layers = 8
    model.config.layer_types = None
    model.save_pretrained(directory)
    shutil.copy(smollm2.path / "tokenizer.json", directory)
    return replace(smollm2, name="draft", path=directory)


def start(model: LocalModel, draft: LocalModel | None = None, **changes: object) -> Collector:
    chosen = settings(**changes, draft_model="" if draft is None else draft.name)
    return Collector(create_engine(model, chosen, (model.path / "tokenizer.json").read_text(), draft))


def finish(collector: Collector) -> None:
    engine = collector.engine
    engine.check_integrity().result(30)  # type: ignore[attr-defined]
    assert engine.stats().kv_blocks_in_use == 0
    engine.close()


@pytest.fixture(scope="module")
def plain(smollm2: LocalModel) -> Iterator[Collector]:
    collector = start(smollm2, speculation="off")
    yield collector
    finish(collector)


@pytest.fixture(scope="module", params=["prompt_lookup", "draft", "draft by itself"])
def guessing(request: pytest.FixtureRequest, smollm2: LocalModel, small_draft: LocalModel) -> Iterator[Collector]:
    drafts = {"prompt_lookup": None, "draft": small_draft, "draft by itself": smollm2}
    collector = start(smollm2, drafts[request.param], speculation=request.param.split()[0])
    yield collector
    finish(collector)


def counts(engine: Engine) -> tuple[float, float]:
    labels = {"model": "smollm2-135m-instruct"}
    return (
        metrics.DRAFTED_TOKENS.labels(**labels).now(),
        metrics.ACCEPTED_TOKENS.labels(**labels).now(),
    )


def load(prompts: list[list[int]]) -> list[Request]:
    """All samplings on prompts that repeat themselves, and some grammars, at once."""
    grammars = [None, Grammar(GrammarKind.JSON_SCHEMA, SCHEMA), Grammar(GrammarKind.REGEX, "(tide, wind; ){4}end")]
    return [
        Request(
            f"{name}, {length} tokens, grammar {number}",
            prompts[47][:length],
            40,
            sampling,
            min_tokens=3,
            stop_token_ids=frozenset({2}),
            grammar=grammar,
        )
        for name, sampling in SAMPLINGS.items()
        for length, number, grammar in ((100, 0, grammars[0]), (41, 1, grammars[1]), (60, 2, grammars[2]))
    ]


def same(one: Answer, other: Answer) -> bool:
    return (one.tokens, one.finish) == (other.tokens, other.finish) and [
        (entry.token_id, [token for token, _ in entry.top]) for entry in one.logprobs
    ] == [(entry.token_id, [token for token, _ in entry.top]) for entry in other.logprobs]


def test_answers_are_those_without(
    plain: Collector, guessing: Collector, reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    requests = load(prompts)
    before = counts(guessing.engine)
    answers = guessing.run(requests)
    drafted, accepted = (now - then for now, then in zip(counts(guessing.engine), before, strict=True))
    expected = plain.run(requests)
    for request in requests:
        assert same(answers[request.id], expected[request.id]), request.id
        if request.sampling == GREEDY and request.grammar is None:
            assert greedy_errors(reference, request.prompt, answers[request.id].tokens) == []
    assert 0 < accepted <= drafted


def test_a_small_cache_and_cancelled_sequences_leave_nothing(
    smollm2: LocalModel, plain: Collector, prompts: list[list[int]]
) -> None:
    collector = start(smollm2, speculation="prompt_lookup", kv_cache_tokens=512, max_step_tokens=40)
    chosen = [prompt[:60] for prompt in prompts if len(prompt) >= 48]
    requests = [Request(str(index), prompt, 40, GREEDY) for index, prompt in enumerate(chosen)]
    collector.on_token = lambda output: (
        collector.engine.cancel(output.request_id) if int(output.request_id) % 3 == 2 else None
    )
    for request in requests:
        collector.engine.submit(request)
    kept = [request for request in requests if int(request.id) % 3 != 2]
    answers = collector.wait([request.id for request in kept])
    assert collector.engine.stats().preemptions > 0
    expected = plain.run(kept)
    for request in kept:
        assert answers[request.id].tokens == expected[request.id].tokens
        assert answers[request.id].finish is Finish.LENGTH
    # What was guessed wrong is in no block that a later prompt would share.
    again = [
        replace(request, id=f"9{request.id}", prompt=request.prompt + expected[request.id].tokens[:30], max_tokens=10)
        for request in kept[:4]
    ]
    for request, answer in zip(kept, collector.run(again).values(), strict=False):
        assert answer.tokens == expected[request.id].tokens[30:]
    finish(collector)


def test_auto_guesses_where_a_sequence_repeats_itself(smollm2: LocalModel, prompts: list[list[int]]) -> None:
    collector = start(smollm2)
    before = counts(collector.engine)
    answer = collector.run([Request("1", prompts[15], 120, GREEDY)])["1"]
    drafted, accepted = (now - then for now, then in zip(counts(collector.engine), before, strict=True))
    assert len(answer.tokens) == 120
    assert accepted > drafted / 2
    assert collector.engine.stats().steps < 80
    finish(collector)


def test_a_draft_model_with_another_tokenizer_is_refused(smollm2: LocalModel, tmp_path: Path) -> None:
    from argosy_services.bootstrap import make_engine
    from argosy_services.errors import ArgosyError, Reason
    from argosy_services.settings import Settings
    from argosy_services.tokenization.backend import Tokenizer

    chosen = Settings(generation={"draft_model": "all-minilm-l6-v2"})  # type: ignore[arg-type]
    with pytest.raises(ArgosyError) as refused:
        make_engine(chosen, smollm2, Tokenizer.load(smollm2))
    assert refused.value.reason is Reason.TOKENIZER_MISMATCH
    assert "all-minilm-l6-v2" in refused.value.message


def test_many_prompts_at_once_are_read_by_the_other_model_as_well(smollm2: LocalModel) -> None:
    """More tokens than one of its steps has room for; native kernels compute no others."""
    numbers = random.Random(1)
    prompts = [[numbers.randrange(100, 40_000) for _ in range(300)] for _ in range(6)]
    requests = [Request(str(at), prompt, 30, GREEDY) for at, prompt in enumerate(prompts)]
    alone = start(smollm2, speculation="off", dtype="bfloat16", quantization="int8")
    expected = alone.run(requests)
    finish(alone)
    collector = start(smollm2, smollm2, speculation="draft", dtype="bfloat16", quantization="int8")
    before = counts(collector.engine)[1]
    answers = collector.run(requests)
    assert [answers[request.id].error for request in requests] == [None] * 6
    assert [answers[request.id].tokens for request in requests] == [expected[request.id].tokens for request in requests]
    assert counts(collector.engine)[1] - before > 60
    finish(collector)


def test_a_token_that_only_the_larger_model_knows_stops_nobody(
    smollm2: LocalModel, small_draft: LocalModel, tmp_path: Path
) -> None:
    """Models of one family pad their vocabularies to different sizes."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_draft.path, dtype=torch.float32)
    model.resize_token_embeddings(49_000)
    model.save_pretrained(tmp_path)
    shutil.copy(smollm2.path / "tokenizer.json", tmp_path)
    collector = start(smollm2, replace(small_draft, path=tmp_path), speculation="draft")
    requests = [Request("1", [100, 49_100, 200], 8, GREEDY), Request("2", [100, 200], 8, GREEDY)]
    answers = collector.run(requests)
    assert [(answer.error, len(answer.tokens)) for answer in answers.values()] == [(None, 8), (None, 8)]
    finish(collector)
