"""Sampling against plain definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.engine.base import Request, Sampling, TokenLogprobs
from argosy_services.engine.torch_engine.sampler import NO_TOKEN, Sampler, _invert, uniform
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Forbidden, Row

VOCAB = 50


def sequence(generated: tuple[int, ...] = (), *, min_tokens: int = 0, **sampling: Any) -> Sequence:
    request = Request(
        id="r",
        prompt=[3, 4],
        max_tokens=99,
        min_tokens=min_tokens,
        stop_token_ids=frozenset({0}),
        sampling=Sampling(**sampling),
    )
    made = Sequence.of(request)
    made.tokens.extend(generated)
    return made


def draw(batch: torch.Tensor, sequences: list[Sequence]) -> list[tuple[int, TokenLogprobs | None]]:
    return Sampler().draw(batch, [Row(made) for made in sequences])


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def frequencies(row: torch.Tensor, draws: int = 4000, **sampling: Any) -> torch.Tensor:
    sequences = [
        sequence(
            temperature=sampling.get("temperature", 1.0),
            seed=seed,
            **{key: value for key, value in sampling.items() if key != "temperature"},
        )
        for seed in range(draws)
    ]
    drawn = draw(row.repeat(draws, 1), sequences)
    counts = torch.zeros(VOCAB)
    for token, _ in drawn:
        counts[token] += 1
    return counts / draws


def test_greedy_takes_the_likeliest() -> None:
    batch = logits(8)
    expected = batch.argmax(-1).tolist()
    assert [token for token, _ in draw(batch, [sequence(temperature=0.0)] * 8)] == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    row = logits()[0]
    expected = torch.softmax(row / temperature, -1)
    seen = frequencies(row, temperature=temperature)
    assert (seen - expected).abs().sum() / 2 < 0.06


def test_top_k_keeps_k() -> None:
    row = logits()[0]
    allowed = set(row.topk(3).indices.tolist())
    assert set(frequencies(row, top_k=3).nonzero().flatten().tolist()) == allowed


def test_top_p_keeps_the_smallest_nucleus() -> None:
    row = logits()[0]
    probabilities, order = torch.softmax(row, -1).sort(descending=True)
    size = int((probabilities.cumsum(0) < 0.6).sum()) + 1
    seen = set(frequencies(row, top_p=0.6).nonzero().flatten().tolist())
    assert seen == set(order[:size].tolist())


def test_min_p_drops_the_unlikely() -> None:
    row = logits()[0]
    probabilities = torch.softmax(row, -1)
    allowed = set((probabilities >= 0.2 * probabilities.max()).nonzero().flatten().tolist())
    assert set(frequencies(row, min_p=0.2).nonzero().flatten().tolist()) <= allowed


def test_a_tiny_top_p_is_greedy() -> None:
    batch = logits(4)
    expected = batch.argmax(-1).tolist()
    assert [token for token, _ in draw(batch, [sequence(top_p=1e-9)] * 4)] == expected


def test_repetition_penalty_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    row = logits()[0]
    made = sequence((7, 7, 9), temperature=0.0, repetition_penalty=1.7)
    processor = transformers.RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([made.tokens]), row[None].clone())[0]
    batch = row[None].clone()
    draw(batch, [made])
    torch.testing.assert_close(batch[0], expected)


def test_presence_and_frequency_count_the_answer_only() -> None:
    batch = torch.zeros(1, VOCAB)
    draw(batch, [sequence((7, 7, 9), temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)])
    assert batch[0, 7] == pytest.approx(-1.0)
    assert batch[0, 9] == pytest.approx(-0.75)
    assert batch[0, 3] == 0.0


def test_bias_and_minimum_length() -> None:
    biased = draw(torch.zeros(1, VOCAB), [sequence(temperature=0.0, logit_bias={11: 5.0})])
    assert biased[0][0] == 11
    stopped = torch.zeros(1, VOCAB)
    stopped[0, 0] = 9.0
    assert draw(stopped.clone(), [sequence(temperature=0.0)])[0][0] == 0
    assert draw(stopped.clone(), [sequence(temperature=0.0, min_tokens=1)])[0][0] != 0


def test_logprobs_are_the_models_own() -> None:
    row = logits()[0]
    expected = torch.log_softmax(row, -1)
    token, logprobs = draw(row[None].clone(), [sequence(temperature=0.3, top_k=2, logprobs=4, seed=5)])[0]
    assert logprobs is not None
    assert logprobs.logprob == pytest.approx(expected[token].item(), abs=1e-5)
    assert [identifier for identifier, _ in logprobs.top] == expected.topk(4).indices.tolist()


def test_a_seed_draws_the_same_in_any_company() -> None:
    rows = logits(6)
    alone = [draw(rows[i : i + 1].clone(), [sequence(seed=i, top_p=0.9)])[0][0] for i in range(6)]
    company = [sequence(seed=i, top_p=0.9) if i % 2 == 0 else sequence(temperature=0.0) for i in range(6)]
    together = [token for token, _ in draw(rows.clone(), company)]
    assert together[::2] == alone[::2]


def test_uniform_numbers_are_uniform_and_differ_by_position() -> None:
    seeds, positions = [seed for seed in range(50) for _ in range(200)], [*range(200)] * 50
    numbers = uniform([*seeds, 2**64 - 1], [*positions, 3])
    assert ((numbers >= 0.0) & (numbers < 1.0)).all()
    assert len(set(numbers)) == len(numbers)
    assert abs(numbers.mean() - 0.5) < 0.01
    assert uniform([49], [199]) == numbers[-2]


def one_by_one(row: torch.Tensor, made: Sequence, ahead: tuple[int, ...] = ()) -> int:
    """The whole of sampling by its definition, for one row, in plain Python."""
    sampling, request = made.request.sampling, made.request
    tokens = [*made.tokens, *ahead]
    answer = tokens[len(request.prompt) :]
    values = row.tolist()
    for token in set(tokens):
        penalty = sampling.repetition_penalty
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(answer):
        values[token] -= sampling.presence_penalty + sampling.frequency_penalty * answer.count(token)
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    if len(answer) < request.min_tokens:
        for token in request.stop_token_ids:
            values[token] = -math.inf
    order = sorted(range(VOCAB), key=lambda token: (-values[token], token))
    if sampling.temperature == 0:
        return order[0]
    order = order[: sampling.top_k or VOCAB]
    weights = {token: math.exp((values[token] - values[order[0]]) / sampling.temperature) for token in order}
    total, before, kept = sum(weights.values()), 0.0, []
    for token in order:
        if kept and before / total >= sampling.top_p:
            break
        kept.append(token)
        before += weights[token]
    left = {token: weights[token] for token in kept if weights[token] >= sampling.min_p}
    target = float(uniform([sampling.seed], [len(answer)])[0]) * sum(left.values())
    for token in sorted(left):
        target -= left[token]
        if target < 0:
            return token
    raise AssertionError("the weights do not reach their sum")


def some_sampling() -> st.SearchStrategy[Sampling]:
    return st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.6, 1.0, 3.0]),
        top_k=st.sampled_from([0, 1, 4, 20, 49]),
        top_p=st.sampled_from([1.0, 0.9, 0.5, 0.01]),
        min_p=st.sampled_from([0.0, 0.05, 0.5]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
        presence_penalty=st.sampled_from([0.0, 0.8, -0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.4]),
        logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 2.0]), max_size=3),
        seed=st.integers(0, 2**64 - 1),
        logprobs=st.sampled_from([None, 0, 3]),
    )


@given(
    samplings=st.lists(some_sampling(), min_size=1, max_size=6),
    answers=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=8), min_size=6, max_size=6),
    aheads=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=3), min_size=6, max_size=6),
    min_tokens=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_every_row_of_a_mixed_batch_follows_the_definition(
    samplings: list[Sampling], answers: list[list[int]], aheads: list[list[int]], min_tokens: int, seed: int
) -> None:
    rows = []
    for sampling, answer, ahead in zip(samplings, answers, aheads, strict=False):
        request = Request("r", [3, 4, 3], 99, sampling, min_tokens=min_tokens, stop_token_ids=frozenset({0, 7}))
        made = Sequence.of(request)
        made.tokens.extend(answer)
        rows.append(Row(made, tuple(ahead)))
    batch = logits(len(rows), seed)
    expected = [one_by_one(line, row.sequence, row.ahead) for line, row in zip(batch, rows, strict=True)]
    assert [token for token, _ in Sampler().draw(batch, rows)] == expected


@pytest.mark.parametrize("columns", [1, 50, 256, 257, 512, 1000])
def test_the_column_of_a_chance_is_the_first_that_exceeds_it(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    # Powers of two add up exactly, in any order. Half of the columns, and some whole ranges, have no weight.
    weights = torch.randint(-8, 8, (40, columns), generator=generator).exp2()
    weights[torch.rand(40, columns, generator=generator) < 0.5] = 0
    weights[:20, columns // 3 :] = 0
    weights[20:, : columns // 2] = 0
    weights[:, columns // 2] = 1 / 256
    cumulative = weights.double().cumsum(1)
    for chance in [0.0, 2**-53, 0.1, 0.25, 0.5, 0.9, 1 - 2**-53]:
        targets = chance * cumulative[:, -1:]
        expected = (cumulative > targets).int().argmax(1)
        found = _invert(weights, torch.full((40,), chance, dtype=torch.float64))
        assert found.tolist() == expected.tolist()
        assert (weights.gather(1, found[:, None]) > 0).all()


def test_a_chance_that_rounding_leaves_over_falls_to_a_column_with_weight() -> None:
    weights = torch.rand(200, 1000, generator=torch.Generator().manual_seed(0)) ** 8
    weights[:, 900:] = 0
    for chance in torch.linspace(0, 1 - 2**-53, 50, dtype=torch.float64).tolist():
        found = _invert(weights, torch.full((200,), chance, dtype=torch.float64))
        assert (weights.gather(1, found[:, None]) > 0).all()


@pytest.mark.parametrize("sampling", [{"top_p": 0.999}, {"top_k": 700}, {"top_k": 300, "top_p": 0.99}, {"top_p": 0.3}])
def test_cuts_beyond_the_likeliest_candidates_are_those_of_a_full_sort(sampling: dict[str, Any]) -> None:
    vocab = 6000
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(1)).mul(0.4).round(decimals=2)  # With many ties.
    ordered, order = row.sort(descending=True, stable=True)
    kept = torch.arange(vocab) < sampling.get("top_k", vocab)
    chances = torch.softmax(ordered.masked_fill(~kept, -math.inf).double(), -1)
    kept &= chances.cumsum(0) - chances < sampling.get("top_p", 1.0)
    weights = torch.zeros(vocab, dtype=torch.float64)
    weights[order[kept]] = chances[kept]
    cumulative = weights.cumsum(0)
    seeds = range(300)
    targets = torch.from_numpy(uniform([*seeds], [0] * len(seeds))) * cumulative[-1]
    expected = torch.searchsorted(cumulative, targets, right=True).tolist()
    drawn = [token for token, _ in draw(row.repeat(len(seeds), 1), [sequence(seed=seed, **sampling) for seed in seeds])]
    # Sums in float32 and float64 may part by one token at an edge.
    assert sum(one != other for one, other in zip(drawn, expected, strict=True)) <= 2


def test_a_grammar_comes_before_the_minimum_length() -> None:
    only_the_stop_token = torch.ones(1, VOCAB, dtype=torch.bool)
    only_the_stop_token[0, 0] = False
    rows = [Row(sequence(temperature=0.0, min_tokens=5)), Row(sequence(temperature=0.0))]
    batch = logits(2)
    expected = int(batch[1].argmax())
    drawn = Sampler().draw(batch, rows, Forbidden([0], only_the_stop_token))
    assert [token for token, _ in drawn] == [0, expected]


@pytest.mark.parametrize("vocab", [VOCAB, 1000])
@pytest.mark.parametrize("sampling", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1, "logprobs": 2}])
def test_a_row_without_numbers_fails_alone(vocab: int, sampling: dict[str, Any]) -> None:
    batch = torch.randn(4, vocab, generator=torch.Generator().manual_seed(1))
    sequences = [sequence(seed=seed, **sampling) for seed in range(4)]
    expected = [token for token, _ in draw(batch.clone(), sequences)]
    batch[1] = math.nan
    batch[2, 7] = math.inf
    assert [token for token, _ in draw(batch, sequences)] == [expected[0], NO_TOKEN, NO_TOKEN, expected[3]]


@pytest.mark.parametrize("penalty", [1e-38, 1e-45, 100.0])
@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.0])
def test_any_penalty_leaves_numbers(penalty: float, temperature: float) -> None:
    made = sequence((7, 9), temperature=temperature, repetition_penalty=penalty, seed=3, logprobs=1)
    batch = logits() + 30
    ((token, _),) = draw(batch, [made])
    assert batch.isfinite().all()
    assert (token in made.tokens) is (penalty < 1)
