"""The bundled model, many requests at once, against transformers and PEFT token for token."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from argosy_services.engine.base import Finish, Grammar, GrammarKind, Request, Sampling, StepOutput
from argosy_services.engine.factory import create_engine
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel

from .conftest import Collector, greedy_errors, settings

GREEDY = Sampling(temperature=0.0)


def test_64_concurrent_prompts_equal_transformers(
    smol: Collector, reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    answers = smol.run([Request(str(index), prompt, 16, GREEDY) for index, prompt in enumerate(prompts)])
    for index, prompt in enumerate(prompts):
        assert len(answers[str(index)].tokens) == 16
        assert greedy_errors(reference, prompt, answers[str(index)].tokens) == [], f"prompt {index}"
    for index in (0, 7, 15):
        generated = reference.generate(  # type: ignore[operator]
            torch.tensor([prompts[index]]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert generated[0, len(prompts[index]) :].tolist() == answers[str(index)].tokens


def test_base_and_adapters_in_one_batch_equal_peft(
    smol: Collector, smollm2: LocalModel, prompts: list[list[int]], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    configs = {
        "attention": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
        "everything": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear"),
    }
    tuned = {}
    for name, config in configs.items():
        torch.manual_seed(len(name))
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32), config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / name)
        tuned[name] = model.eval()
        smol.engine.load_adapter(name, smol.engine.read_adapter(tmp_path / name)).result(30)
    choices = [None, "attention", "everything"]
    chosen = {str(index): choices[index % 3] for index in range(64)}
    answers = smol.run(
        [Request(str(index), prompt, 10, GREEDY, adapter=chosen[str(index)]) for index, prompt in enumerate(prompts)]
    )
    differs = 0
    for index, prompt in enumerate(prompts):
        adapter, answer = chosen[str(index)], answers[str(index)].tokens
        if adapter is not None:
            assert greedy_errors(tuned[adapter], prompt, answer) == [], f"prompt {index} with {adapter}"
        elif index < 24:
            differs += any(greedy_errors(model, prompt, answer) for model in tuned.values())
    assert differs > 4, "the adapters must change answers, or this test shows nothing"
    for name in configs:
        smol.engine.unload_adapter(name).result(30)
    assert smol.engine.stats().adapters == 0


def test_scores_equal_transformers(smol: Collector, reference: torch.nn.Module, prompts: list[list[int]]) -> None:
    chosen = [prompt for prompt in prompts if 10 < len(prompt) < 100][:8]
    answers = smol.run(
        [Request(str(index), prompt, 0, score_from=len(prompt) - 6) for index, prompt in enumerate(chosen)]
    )
    for index, prompt in enumerate(chosen):
        with torch.inference_mode():
            logprobs = reference(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = [logprobs[position - 1, prompt[position]].item() for position in range(len(prompt) - 6, len(prompt))]
        scored = answers[str(index)].logprobs
        assert [entry.token_id for entry in scored] == prompt[-6:]
        assert [entry.logprob for entry in scored] == pytest.approx(expected, abs=1e-3)
        likeliest = logprobs[len(prompt) - 7 : -1].argmax(-1).tolist()
        assert [entry.top[0][0] for entry in scored] == likeliest


def test_cancelling_half_frees_its_blocks_and_leaves_the_others_alone(
    smol: Collector, reference: torch.nn.Module, prompts: list[list[int]]
) -> None:
    cancelled: set[str] = set()
    enough = threading.Event()

    def cancel_odd(output: StepOutput) -> None:
        name = output.request_id
        if int(name) % 2 and name not in cancelled and len(smol.answers[name].tokens) >= 4:
            cancelled.add(name)
            smol.engine.cancel(name)
            if len(cancelled) == 32:
                enough.set()

    smol.on_token = cancel_odd
    for index, prompt in enumerate(prompts):
        smol.engine.submit(Request(str(index), prompt, 16, GREEDY))
    survivors = smol.wait([str(index) for index in range(0, 64, 2)])
    smol.on_token = None
    assert enough.is_set()
    for index in range(0, 64, 2):
        assert len(survivors[str(index)].tokens) == 16
        assert greedy_errors(reference, prompts[index], survivors[str(index)].tokens) == [], f"prompt {index}"
    smol.engine.check_integrity().result(10)  # type: ignore[attr-defined]
    assert smol.engine.stats().kv_blocks_in_use == 0
    for name in cancelled:
        assert smol.answers.pop(name).finish is None


def test_a_small_cache_preempts_and_changes_nothing(
    smollm2: LocalModel, smol: Collector, prompts: list[list[int]]
) -> None:
    chosen = [prompt for prompt in prompts if len(prompt) <= 48][:10]
    expected = smol.run([Request(f"e{index}", prompt, 28, GREEDY) for index, prompt in enumerate(chosen)])
    tokenizer = (smollm2.path / "tokenizer.json").read_text()
    engine = create_engine(smollm2, settings(kv_cache_tokens=256, max_step_tokens=48), tokenizer)
    collector = Collector(engine)
    answers = collector.run([Request(str(index), prompt, 28, GREEDY) for index, prompt in enumerate(chosen)])
    assert engine.stats().preemptions > 0
    for index in range(len(chosen)):
        assert answers[str(index)].tokens == expected[f"e{index}"].tokens
    with pytest.raises(ArgosyError) as refused:
        engine.submit(Request("big", chosen[0], 10_000))
    assert refused.value.reason is Reason.KV_CACHE_FULL
    engine.close()


def test_a_full_queue_refuses_and_recovers(smollm2: LocalModel, prompts: list[list[int]]) -> None:
    tokenizer = (smollm2.path / "tokenizer.json").read_text()
    engine = create_engine(smollm2, settings(kv_cache_tokens=2048, max_batch=2, max_waiting=1), tokenizer)
    collector = Collector(engine)
    for name in "abc":
        engine.submit(Request(name, prompts[3], 16, GREEDY))
    with pytest.raises(ArgosyError) as refused:
        engine.submit(Request("d", prompts[3], 16, GREEDY))
    assert refused.value.reason is Reason.QUEUE_FULL
    assert refused.value.retry_after_s
    answers = collector.wait(["a", "b", "c"])
    assert len({tuple(answer.tokens) for answer in answers.values()}) == 1
    assert len(collector.run([Request("e", prompts[3], 4, GREEDY)])["e"].tokens) == 4
    engine.submit(Request("running", prompts[3], 2000, GREEDY))
    engine.close()
    assert collector.wait(["running"])["running"].finish is Finish.FAILED
    with pytest.raises(ArgosyError) as stopped:
        engine.submit(Request("late", prompts[3], 4, GREEDY))
    assert stopped.value.reason is Reason.ENGINE_FAILED


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_structured_output_always_validates(smol: Collector, smollm2: LocalModel, temperature: float) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "kind": {"enum": ["boat", "harbour"]},
        },
        "required": ["name", "age", "kind"],
        "additionalProperties": False,
    }
    prompt = tokenizer.encode("Describe it as JSON: ").ids
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    eos = smol.engine.info.eos_token_ids
    answers = smol.run(
        [
            Request(
                str(seed),
                prompt,
                120,
                Sampling(temperature=temperature, seed=seed),
                stop_token_ids=eos,
                grammar=grammar,
            )
            for seed in range(8)
        ]
    )
    for answer in answers.values():
        assert answer.finish is Finish.STOP
        value = json.loads(tokenizer.decode(answer.tokens, skip_special_tokens=True))
        assert set(value) == {"name", "age", "kind"}
        assert 0 <= value["age"] <= 130
        assert len(value["name"]) <= 12


@pytest.mark.parametrize("most", [40, 5, 1])
def test_forced_tokens_are_those_that_would_be_drawn(smol: Collector, smollm2: LocalModel, most: int) -> None:
    """Log-probabilities have every token drawn."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))
    grammar = Grammar(
        GrammarKind.REGEX, "The (harbour|lighthouse) keeper said that the (tide|wind) would turn before dawn\\."
    )
    prompt = tokenizer.encode("A story: ").ids
    steps = smol.engine.stats().steps
    jumped = smol.run([Request("jumped", prompt, most, GREEDY, grammar=grammar)])["jumped"]
    jumps = smol.engine.stats().steps - steps
    drawn = smol.run([Request("drawn", prompt, most, replace(GREEDY, logprobs=0), grammar=grammar)])["drawn"]
    assert (jumped.tokens, jumped.finish) == (drawn.tokens, drawn.finish)
    assert len(drawn.logprobs) == len(drawn.tokens) <= most
    if most == 40:
        assert drawn.finish is Finish.STOP
        assert jumps < len(jumped.tokens) / 2
    else:
        assert (drawn.finish, len(drawn.tokens)) == (Finish.LENGTH, most)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (GrammarKind.REGEX, "(unclosed"),
        (GrammarKind.JSON_SCHEMA, "not json"),
        (GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'),
        (GrammarKind.LARK, "start: undefined_rule"),
    ],
)
def test_bad_grammars_are_refused_with_the_reason(smol: Collector, kind: GrammarKind, source: str) -> None:
    with pytest.raises(ArgosyError) as refused:
        smol.engine.check_grammar(Grammar(kind, source))
    assert refused.value.reason is Reason.INVALID_GRAMMAR
    assert refused.value.metadata["detail"]


def test_an_adapter_that_leaves_ends_only_its_own_sequences(smol: Collector, prompts: list[list[int]]) -> None:
    answers = smol.run(
        [Request("base", prompts[5], 6, GREEDY), Request("orphan", prompts[5], 6, GREEDY, adapter="nobody")]
    )
    assert answers["orphan"].finish is Finish.FAILED
    assert isinstance(answers["orphan"].error, ArgosyError)
    assert answers["orphan"].error.reason is Reason.ADAPTER_NOT_READY
    assert len(answers["base"].tokens) == 6


def test_seeded_draws_are_the_same_in_any_company(smol: Collector, prompts: list[list[int]]) -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=1234)
    alone = smol.run([Request("alone", prompts[12], 20, sampling)])["alone"].tokens
    company = [Request(f"c{index}", prompts[index], 20, Sampling(seed=index)) for index in range(20)]
    assert smol.run([*company, Request("again", prompts[12], 20, sampling)])["again"].tokens == alone
