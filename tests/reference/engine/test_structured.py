"""Structured output: whatever the grammar, answers keep to it, and nobody waits for a grammar but its own request."""

from __future__ import annotations

import json
import random
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from argosy_services.engine.base import Finish, Grammar, GrammarKind, Request, Sampling
from argosy_services.engine.torch_engine.grammar import GrammarCompiler, Matcher
from argosy_services.engine.torch_engine.masks import MaskMaker
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Row
from argosy_services.engine.torch_engine.step import Work
from argosy_services.engine.torch_engine.taking import take
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel

from .conftest import Collector

BENCH = runpy.run_path(str(Path(__file__).parents[3] / "bench" / "structured.py"))
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer(smollm2: LocalModel) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))


def test_answers_under_drawn_schemas_are_valid(smol: Collector, tokenizer: Tokenizer) -> None:
    random_ = random.Random(7)
    schemas = [BENCH["draw_schema"](random_, depth=2) for _ in range(24)]
    prompt = tokenizer.encode("As JSON: ").ids
    answers = smol.run(
        [
            Request(
                str(number),
                prompt,
                600,
                Sampling(temperature=number % 3 / 2, seed=number),
                stop_token_ids=smol.engine.info.eos_token_ids,
                grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)),
            )
            for number, schema in enumerate(schemas)
        ]
    )
    for number, schema in enumerate(schemas):
        assert answers[str(number)].finish is Finish.STOP
        text = tokenizer.decode(answers[str(number)].tokens, skip_special_tokens=True)
        assert BENCH["problem"](text, schema) is None, (schema, text)


def test_only_its_own_request_waits_for_a_grammar(smol: Collector, prompts: list[list[int]]) -> None:
    go_on = threading.Event()
    compiler: GrammarCompiler = smol.engine._grammars  # type: ignore[attr-defined]
    busy = [compiler._workers.submit(go_on.wait, 60) for _ in range(2)]
    grammar = Grammar(GrammarKind.REGEX, "(fore|aft)[0-9]{3}")
    for name in ("patient", "impatient"):
        smol.engine.submit(Request(name, prompts[4], 20, GREEDY, grammar=grammar))
    assert len(smol.run([Request("free", prompts[4], 6, GREEDY)])["free"].tokens) == 6
    smol.engine.check_integrity().result(10)  # type: ignore[attr-defined]
    assert (smol.engine.stats().running, smol.engine.stats().waiting) == (0, 2)
    smol.engine.cancel("impatient")
    go_on.set()
    assert all(worker.result(10) for worker in busy)
    assert smol.wait(["patient"])["patient"].finish is Finish.STOP
    smol.engine.check_integrity().result(10)  # type: ignore[attr-defined]
    assert smol.engine.stats().waiting == 0
    assert not smol.answers


def test_a_grammar_that_fails_late_fails_its_own_request_only(smol: Collector, prompts: list[list[int]]) -> None:
    broken = Request("broken", prompts[4], 20, GREEDY, grammar=Grammar(GrammarKind.REGEX, "(unclosed"))
    answers = smol.run([broken, Request("fine", prompts[4], 6, GREEDY)])
    assert len(answers["fine"].tokens) == 6
    assert isinstance(answers["broken"].error, ArgosyError)
    assert answers["broken"].error.reason is Reason.INVALID_GRAMMAR


def test_masks_of_a_step_are_those_of_each_token(smollm2: LocalModel, tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler((smollm2.path / "tokenizer.json").read_text(), 49_152, frozenset({2}))
    text = '{"port": "north-abc", "n": 12}'
    grammar = Grammar(
        GrammarKind.LARK, r'start: "{\"port\": \"" PORT "\", \"n\": " N "}"' + "\nPORT: /[a-z-]+/\nN: /[0-9]+/"
    )
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    work, rows, expected = [], [], []
    for start, drafted in ((0, 5), (2, 0), (4, 3)):
        sequence = Sequence.of(Request("r", [1], 50, generated=ids[:start]))
        sequence.matcher = compiler.matcher(grammar, ids[:start]).result()
        sequence.computed = len(sequence.tokens) - 1
        draft = tuple(ids[start : start + drafted])
        work.append(Work(sequence, sequence.computed, 1 + drafted, draft))
        for ahead in range(drafted + 1):
            rows.append(Row(sequence, draft[:ahead]))
            native = compiler.matcher(grammar, ids[: start + ahead]).result().native
            bits = np.unpackbits(np.frombuffer(native.compute_bitmask(), np.uint8), bitorder="little")
            expected.append(torch.from_numpy(bits[:49_152] == 0))
    maker = MaskMaker(49_152, 1)
    masks = maker.start(work)
    assert masks is not None
    shuffled = [*range(3, len(rows)), 0, 1, 2]
    forbidden = masks.of([rows[index] for index in shuffled], torch.device("cpu"))
    assert forbidden is not None
    assert forbidden.rows == list(range(len(rows)))
    assert torch.equal(forbidden.tokens, torch.stack([expected[index] for index in shuffled]))
    maker.close()
    compiler.close()


def test_a_grammar_that_breaks_down_does_not_end_as_if_it_were_satisfied(smollm2: LocalModel) -> None:
    tokens = LLTokenizer((smollm2.path / "tokenizer.json").read_text(), n_vocab=49_152, eos_token=[2])
    lark = r"start: /(.*a.{15}b)|(.*b.{14}c)|(.*c.{16}d)/"
    limits = LLParserLimits(step_lexer_fuel=10, step_max_items=2)
    sequence = Sequence.of(Request("r", [1], 50, stop_token_ids=frozenset({2})))
    sequence.matcher = Matcher(LLMatcher(tokens, LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits))
    maker = MaskMaker(49_152, 1)
    masks = maker.start([Work(sequence, 0, 1)])
    assert masks is not None
    forbidden = masks.of([Row(sequence)], torch.device("cpu"))
    assert forbidden is not None
    assert (~forbidden.tokens[0]).nonzero().flatten().tolist() == [2]
    with pytest.raises(ArgosyError) as failed:
        take(sequence, (), [(2, None)])
    assert failed.value.reason is Reason.INVALID_GRAMMAR
    maker.close()
