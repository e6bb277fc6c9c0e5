"""The runner for GPUs, padded batches in buffers that stay, against the plain runner. On a CPU, where nothing is
captured, and with the kernels' arithmetic in torch's operators."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.gpu.decode_step import captured_sizes
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work
from argosy_services.errors import ArgosyError, Reason

from .plain import PlainKernels
from .tiny import (
    BLOCK_TOKENS,
    BLOCKS,
    CONFIGS,
    LLAMA,
    MAX_ROWS,
    Padded,
    Plain,
    answers,
    prompts,
    random_adapter,
    random_weights,
)

LENGTHS = (1, 5, 16, 60, 23, 40, 7)


def make_sequence(tokens: list[int], first_block: int, adapter: str | None = None) -> Sequence:
    sequence = Sequence.of(Request(str(first_block), tokens, 1, adapter=adapter))
    sequence.table.extend(reversed(range(first_block, first_block + -(-len(tokens) // BLOCK_TOKENS))))
    return sequence


def test_sizes_of_graphs() -> None:
    assert captured_sizes(1) == [1]
    assert captured_sizes(12) == [1, 2, 4, 8, 12]
    assert captured_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert captured_sizes(300)[-4:] == [224, 240, 256, 300]
    assert len(captured_sizes(4096)) == 47
    assert captured_sizes(100) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_the_plain_runner(name: str) -> None:
    config = CONFIGS[name]
    weights, asked = random_weights(config), prompts(*LENGTHS)
    plain, padded = Plain(config, weights).runner, Padded(config, weights, PlainKernels()).runner
    expected = answers(plain, asked, 30)
    assert answers(padded, asked, 30) == expected
    assert len({token for answer in expected for token in answer}) > 20, "the model says more than one thing"
    works = [Work(sequence := make_sequence(prompts(70)[0], 5), 0, 69), Work(sequence, 69, 1)]
    for work in works:
        torch.testing.assert_close(padded.run([work])[0], plain.run([work])[0], atol=1e-4, rtol=1e-4)


def test_adapters_that_come_and_go_change_their_rows_only() -> None:
    weights, asked = random_weights(LLAMA), prompts(*LENGTHS)
    plain, padded = Plain(LLAMA, weights), Padded(LLAMA, weights, PlainKernels())
    adapters = {"a": random_adapter(LLAMA, 20, 1), "b": random_adapter(LLAMA, 8, 2), "c": random_adapter(LLAMA, 3, 3)}
    base = answers(plain.runner, asked, 20)
    for key, weights_of in adapters.items():
        plain.adapters.put(key, plain.adapters.prepare(weights_of))
    # Slots have held larger adapters before: nothing of them may be left.
    for key, before in (("a", "b"), ("b", "a"), ("c", "a")):
        padded.adapters.put("x", padded.adapters.prepare(adapters[before]))
        padded.adapters.drop("x")
        padded.adapters.put(key, padded.adapters.prepare(adapters[key]))
    with pytest.raises(ArgosyError) as refused:
        padded.adapters.put("d", padded.adapters.prepare(adapters["c"]))
    assert refused.value.reason is Reason.ADAPTER_SLOTS_FULL
    assert len(padded.adapters) == 3
    padded.adapters.put("b", padded.adapters.prepare(adapters["b"]))
    of = ("a", None, "b", "c", "a", None, "b")
    expected = answers(plain.runner, asked, 20, of)
    assert answers(padded.runner, asked, 20, of) == expected
    assert [expected[index] == base[index] for index, key in enumerate(of) if key is None] == [True, True]
    assert sum(expected[index] == base[index] for index, key in enumerate(of) if key is not None) < 2
    padded.adapters.drop("b")
    assert ("a" in padded.adapters, "b" in padded.adapters, len(padded.adapters)) == (True, False, 2)
    padded.adapters.put("d", padded.adapters.prepare(adapters["b"]))
    assert answers(padded.runner, asked, 20, ["d" if key == "b" else key for key in of]) == expected


def test_a_row_depends_neither_on_others_nor_on_padding() -> None:
    padded = Padded(LLAMA, random_weights(LLAMA), PlainKernels())
    made = [make_sequence(tokens, 1 + 4 * index) for index, tokens in enumerate(prompts(*LENGTHS))]
    padded.runner.run([Work(item, 0, len(item.tokens) - 1) for item in made if len(item.tokens) > 1])
    last = [Work(item, len(item.tokens) - 1, 1) for item in made]
    together = padded.runner.run(last)[0].clone()
    for row, item in enumerate(last):
        torch.testing.assert_close(padded.runner.run([item])[0], together[row : row + 1], atol=1e-5, rtol=1e-5)


def test_padding_writes_to_no_block_of_a_sequence() -> None:
    padded = Padded(LLAMA, random_weights(LLAMA), PlainKernels())
    sequence = make_sequence(prompts(5)[0], 3)
    works = [Work(replace_table(sequence, block), 4, 1) for block in range(5)]
    padded.runner.run(works)
    written = padded.pool.keys[0].abs().sum(dim=(0, 2)).view(-1, BLOCK_TOKENS)
    assert written.nonzero()[:, 0].unique().tolist() == [0, 1, 2, 3, 4, BLOCKS], "five rows, and the last block of all"
    assert written[BLOCKS].count_nonzero() == 3, "a batch of five is padded to eight"


def replace_table(sequence: Sequence, block: int) -> Sequence:
    return replace(sequence, table=[block])


def test_more_decoding_rows_than_graphs_have_are_computed_with_the_prompts() -> None:
    padded, plain = Padded(LLAMA, weights := random_weights(LLAMA), PlainKernels()), Plain(LLAMA, weights)
    works = [Work(make_sequence(tokens, index), 0, 1) for index, tokens in enumerate(prompts(*[1] * (MAX_ROWS + 3)))]
    logits, spans = padded.runner.run(works)
    assert [span.work for span in spans] == works
    torch.testing.assert_close(logits, plain.runner.run(works)[0], atol=1e-4, rtol=1e-4)


def test_only_wanted_rows_become_logits() -> None:
    padded, plain = Padded(LLAMA, weights := random_weights(LLAMA), PlainKernels()), Plain(LLAMA, weights)
    whole, half, scored = (make_sequence(tokens, 3 * index) for index, tokens in enumerate(prompts(9, 20, 12)))
    scored = replace(scored, request=replace(scored.request, score_from=2))
    # One token of a prompt that goes on, a piece that does not end, a guess of two tokens, and a scored prompt.
    draft = replace(whole, tokens=whole.tokens[:7], table=[12])
    works = [Work(half, 0, 1), Work(half, 1, 9), Work(draft, 0, 9, (70, 71)), Work(scored, 0, 12), Work(whole, 8, 1)]
    for runner in (padded.runner, plain.runner):
        runner.run([Work(whole, 0, 8)])
    logits, spans = padded.runner.run(works)
    expected, expected_spans = plain.runner.run(works)
    given = {span.work.start + span.work.count: logits[span.first : span.first + span.count] for span in spans}
    assert [span.count for span in spans] == [1, 3, 10]
    for span in expected_spans:
        found = given[span.work.start + span.work.count] if span.work.sequence is not whole else logits[:1]
        torch.testing.assert_close(found, expected[span.first : span.first + span.count], atol=1e-4, rtol=1e-4)
    nothing, spans = padded.runner.run([Work(half, 0, 1), Work(half, 1, 9)])
    assert (nothing.shape, spans) == ((0, LLAMA.vocab_size), [])
