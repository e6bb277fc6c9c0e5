"""Draws the next token of each sequence from its logits, all sequences in one pass over the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows

import torch

from argosy_services.engine.base import Sampling, TokenLogprobs
from argosy_services.engine.torch_engine.grammar import Matcher
from argosy_services.engine.torch_engine.sequence import Sequence

_NEVER = float("-inf")


@torch.inference_mode()
def draw(logits: torch.Tensor, sequences: Rows[Sequence]) -> list[tuple[int, TokenLogprobs | None]]:
    """The next token of each sequence, with log-probabilities where it wants them.

    `logits` is float32 `[sequences, vocab]` and is overwritten. The steps and their order are those that
    `SamplingParams` in generation.proto documents.
    """
    wanted = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.logprobs is not None]
    model_logprobs = torch.log_softmax(logits[wanted], dim=-1) if wanted else None
    for row, sequence in zip(logits, sequences, strict=True):
        _shape(row, sequence)
    tokens = logits.argmax(dim=-1)
    sampled = [row for row, sequence in enumerate(sequences) if sequence.request.sampling.temperature > 0]
    if sampled:
        tokens[sampled] = _sample(logits[sampled], [sequences[row] for row in sampled])
    drawn: list[tuple[int, TokenLogprobs | None]] = [(token, None) for token in tokens.tolist()]
    if model_logprobs is not None:
        for row, logprobs in zip(wanted, model_logprobs, strict=True):
            token = drawn[row][0]
            drawn[row] = (token, describe(logprobs, token, sequences[row].request.sampling.logprobs or 0))
    return drawn


def describe(logprobs: torch.Tensor, token_id: int, top: int) -> TokenLogprobs:
    """The log-probability of a token and of the `top` likeliest, from log-probabilities `[vocab]`."""
    values, ids = logprobs.topk(top)
    return TokenLogprobs(token_id, logprobs[token_id].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _shape(logits: torch.Tensor, sequence: Sequence) -> None:
    """Penalties, bias, minimum length and grammar, in place on `[vocab]`."""
    request = sequence.request
    sampling = request.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty
        )
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(sequence.tokens[len(request.prompt) :])
        if counts:
            used = torch.tensor(list(counts), device=logits.device)
            times = torch.tensor(list(counts.values()), device=logits.device)
            logits[used] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sampling.logit_bias:
        ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
    if isinstance(sequence.matcher, Matcher):
        logits.masked_fill_(~sequence.matcher.allowed(len(logits)).to(logits.device), _NEVER)
    if sequence.generated < request.min_tokens and request.stop_token_ids:
        _forbid(logits, torch.tensor(sorted(request.stop_token_ids), device=logits.device))


def _forbid(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """Rules tokens out, unless a grammar leaves nothing else."""
    before = logits[ids]
    logits[ids] = _NEVER
    if logits.max() == _NEVER:
        logits[ids] = before


def _sample(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """Draws one token for each row of `[rows, vocab]` by inverting its cumulative distribution."""
    samplings = [sequence.request.sampling for sequence in sequences]
    logits = logits / _column([sampling.temperature for sampling in samplings], logits)
    cut = [row for row, sampling in enumerate(samplings) if sampling.top_k or sampling.top_p < 1.0]
    if cut:
        logits[cut] = _keep_top(logits[cut], [samplings[row] for row in cut])
    probabilities = torch.softmax(logits, dim=-1)
    if any(sampling.min_p for sampling in samplings):
        floor = probabilities.amax(dim=-1, keepdim=True) * _column([s.min_p for s in samplings], logits)
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    cumulative = probabilities.double().cumsum(dim=-1)
    chance = [uniform(sequence.request.sampling.seed, sequence.generated) for sequence in sequences]
    targets = torch.tensor(chance, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    # The first token whose cumulative probability exceeds the target: one of probability 0 is never drawn.
    return torch.searchsorted(cumulative, targets, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)


def _keep_top(logits: torch.Tensor, samplings: Rows[Sampling]) -> torch.Tensor:
    """Rules out what top_k and top_p (nucleus sampling, Holtzman et al., 2020) cut off."""
    vocab = logits.shape[-1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(vocab, device=logits.device)
    ordered = ordered.masked_fill(
        ranks >= _column([min(sampling.top_k or vocab, vocab) for sampling in samplings], logits), _NEVER
    )
    before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
    before[:, 0] = 0.0
    ordered = ordered.masked_fill(before >= _column([sampling.top_p for sampling in samplings], logits), _NEVER)
    ordered[:, 0] = logits.gather(-1, order[:, :1]).squeeze(1)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def _column(values: Rows[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but a request's seed and the position of the token to be drawn.

    Without state: a sequence that was preempted, or that runs among others, draws the same. The mixing function is
    SplitMix64 (Steele, Lea and Flood, 2014).
    """
    mask = (1 << 64) - 1
    mixed = _mix(_mix(seed & mask) + (position + 1) * 0x9E3779B97F4A7C15 & mask)
    return (mixed >> 11) * 2.0**-53


def _mix(value: int) -> int:
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)
