"""Chooses the next token of each sequence from its logits, all rows of a step together."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
import torch

from argosy_services.engine.base import Sampling, TokenLogprobs
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Forbidden, Row, Shaper
from argosy_services.engine.torch_engine.truncation import CANDIDATES, WIDER, column, cut, is_cut, weights_of

NO_TOKEN = -1
"""Stands where nothing can be drawn, as logits are not numbers."""

# Columns whose weights are summed up before one of them is looked for.
_BLOCK = 256


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token, int64 `[rows]`, of rows `[rows, vocab]`."""
    return logits.argmax(dim=-1)


class Sampler:
    """Draws tokens as `SamplingParams` in generation.proto documents it.

    A row's token depends on its logits, its request, the tokens before it and nothing else, least of all on the other
    rows. State that speeds this up is kept for each sequence until it is told to `forget` it.
    """

    def __init__(self, likeliest: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        """`likeliest` is a faster `greedy` for logits that nothing has changed."""
        self._shaper = Shaper()
        self._likeliest = likeliest or greedy

    def forget(self, sequence: Sequence) -> None:
        """Drops what is known of a sequence."""
        self._shaper.forget(sequence)

    @torch.inference_mode()
    def draw(
        self, logits: torch.Tensor, rows: Items[Row], forbidden: Forbidden | None = None
    ) -> list[tuple[int, TokenLogprobs | None]]:
        """The next token of each row, or `NO_TOKEN`, with log-probabilities where its request wants them.

        `logits` is float32 `[rows, vocab]` and is overwritten; `forbidden` is what grammars rule out.
        """
        wanted = [row for row, of in enumerate(rows) if of.sampling.logprobs is not None]
        unshaped = logits[wanted] if wanted else None
        tokens = self.tokens(logits, rows, forbidden)
        drawn: list[tuple[int, TokenLogprobs | None]] = [(token, None) for token in tokens]
        if unshaped is not None:
            tops = [rows[row].sampling.logprobs or 0 for row in wanted]
            taken = [max(tokens[row], 0) for row in wanted]
            for row, described in zip(wanted, describe(unshaped, taken, tops), strict=True):
                drawn[row] = (tokens[row], described)
        return drawn

    @torch.inference_mode()
    def tokens(self, logits: torch.Tensor, rows: Items[Row], forbidden: Forbidden | None = None) -> list[int]:
        """The next token of each row, as `draw` gives it; `NO_TOKEN` where a row has no distribution to draw from."""
        likeliest = self._likeliest
        if forbidden is not None or not all(row.untouched for row in rows):
            self._shaper.shape(logits, rows, forbidden)
            likeliest = greedy
        sampled = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
        if not sampled:
            return likeliest(logits).tolist()
        if len(sampled) == len(rows):
            return _sample(logits, rows).tolist()
        tokens = likeliest(logits)
        tokens[sampled] = _sample(logits[sampled], [rows[index] for index in sampled]).to(tokens.device)
        return tokens.tolist()


def describe(logits: torch.Tensor, token_ids: Items[int], tops: Items[int]) -> list[TokenLogprobs]:
    """The log-probability of one token in each row of `[rows, vocab]`, and of the `tops` likeliest there."""
    total = logits.logsumexp(dim=-1, keepdim=True)
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    logprobs = (logits.gather(-1, chosen) - total).squeeze(1).tolist()
    values, ids = logits.topk(max(tops), dim=-1)
    likeliest = zip(ids.tolist(), (values - total).tolist(), strict=True)
    return [
        TokenLogprobs(token_id, logprob, tuple(zip(row_ids[:top], row_values[:top], strict=True)))
        for token_id, logprob, top, (row_ids, row_values) in zip(token_ids, logprobs, tops, likeliest, strict=True)
    ]


def _sample(logits: torch.Tensor, rows: Items[Row]) -> torch.Tensor:
    """Draws a token for each row of `[rows, vocab]`, which it overwrites, by inverting its cumulative distribution."""
    samplings = [row.sampling for row in rows]
    logits.div_(column([sampling.temperature for sampling in samplings], logits))
    numbers = uniform([sampling.seed for sampling in samplings], [row.position for row in rows])
    chances = torch.from_numpy(numbers).to(logits.device)
    short = [index for index, sampling in enumerate(samplings) if is_cut(sampling)]
    if not short:
        return _invert(weights_of(logits, samplings), chances)
    if len(short) == len(rows):
        return _draw_cut(logits, samplings, chances, CANDIDATES)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    whole = [index for index, sampling in enumerate(samplings) if not is_cut(sampling)]
    tokens[whole] = _invert(weights_of(logits[whole], [samplings[index] for index in whole]), chances[whole])
    tokens[short] = _draw_cut(logits[short], [samplings[index] for index in short], chances[short], CANDIDATES)
    return tokens


def _draw_cut(logits: torch.Tensor, samplings: Items[Sampling], chances: torch.Tensor, candidates: int) -> torch.Tensor:
    ids, weights, complete = cut(logits, samplings, candidates)
    columns = _invert(weights, chances)
    tokens = torch.where(columns == NO_TOKEN, NO_TOKEN, ids.gather(-1, columns.clamp_min(0)[:, None]).squeeze(1))
    wider = (~complete).nonzero().flatten().tolist()
    if wider:
        again = [samplings[row] for row in wider]
        tokens[wider] = _draw_cut(logits[wider], again, chances[wider], candidates * WIDER)
    return tokens


def _invert(weights: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
    """The column of each row of `[rows, n]` at which its share of all weights exceeds its chance; never one without
    weight, and `NO_TOKEN` where weights are not numbers.

    First the block of columns is looked for, then the column in it: a cumulative sum of all of them takes ten times as
    long.
    """
    columns = weights.shape[-1]
    if columns <= _BLOCK:
        cumulative = weights.double().cumsum(dim=-1)
        found = _first_above(cumulative, chances[:, None] * cumulative[:, -1:]).squeeze(1)
        return _where_finite(cumulative, found)
    cumulative = _block_sums(weights).double().cumsum(dim=-1)
    targets = chances[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, targets)
    before = torch.where(block > 0, cumulative.gather(-1, (block - 1).clamp_min_(0)), 0.0)
    shares = (targets - before) / (cumulative.gather(-1, block) - before)
    places = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    inside = weights.gather(-1, places.clamp_max(columns - 1)).masked_fill_(places >= columns, 0.0)
    within = inside.double().cumsum(dim=-1)
    found = (block * _BLOCK + _first_above(within, shares * within[:, -1:])).squeeze(1)
    return _where_finite(cumulative, found)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    whole = weights.shape[-1] // _BLOCK * _BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, _BLOCK)).sum(dim=-1)
    return sums if whole == weights.shape[-1] else torch.cat((sums, weights[:, whole:].sum(-1, keepdim=True)), dim=-1)


def _first_above(cumulative: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The first column of each row that exceeds its target; the last that adds anything where rounding leaves none."""
    # In sums that are not numbers a search runs over the end.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).clamp_max_(cumulative.shape[-1] - 1)
    return torch.minimum(torch.searchsorted(cumulative, targets, right=True), last)


def _where_finite(cumulative: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    return torch.where(cumulative[:, -1].isfinite(), found, NO_TOKEN)


def uniform(seeds: Items[int], positions: Items[int]) -> np.ndarray:
    """Numbers in [0, 1), float64, each of which depends on nothing but a request's seed and a token's position.

    Without state: a sequence that was preempted, that runs among others, or whose token was drafted, draws the same.
    The mixing function is SplitMix64 (Steele, Lea and Flood, 2014).
    """
    places = np.array(positions, dtype=np.uint64) + np.uint64(1)
    mixed = _mix(_mix(np.array(seeds, dtype=np.uint64)) + places * _GOLDEN)
    return (mixed >> np.uint64(11)) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    # Products and sums wrap around at 64 bits, as they should.
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
