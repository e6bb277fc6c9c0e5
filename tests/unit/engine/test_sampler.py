"""Sampling against plain definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from argosy_services.engine.base import Request, Sampling
from argosy_services.engine.torch_engine.sampler import draw, uniform
from argosy_services.engine.torch_engine.sequence import Sequence

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
    numbers = [uniform(seed, position) for seed in range(50) for position in range(200)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert len(set(numbers)) == len(numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.01
    assert math.isclose(uniform(1, 2), uniform(1, 2))
