"""What a request does to logits before its token is chosen: penalties, bias, grammar, minimum length.

All rows of a batch are treated together: what each of them changes is gathered into flat arrays of (row, token, value).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch

from argosy_services.engine.base import Sampling
from argosy_services.engine.torch_engine.sequence import Sequence

NEVER = float("-inf")
# Penalties leave no larger numbers, which the lowest temperature must be able to divide without overflow.
_LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits: what follows the tokens of `sequence` and, in the row of a drafted token, those `ahead`."""

    sequence: Sequence
    ahead: tuple[int, ...] = ()

    @property
    def sampling(self) -> Sampling:
        """How its token is to be chosen."""
        return self.sequence.request.sampling

    @property
    def position(self) -> int:
        """Which token of the answer is to be chosen, from 0."""
        return self.sequence.generated + len(self.ahead)

    @property
    def untouched(self) -> bool:
        """Whether `Shaper` leaves its logits as they are; a grammar aside."""
        sampling = self.sampling
        return (
            sampling.repetition_penalty == 1.0
            and not sampling.presence_penalty
            and not sampling.frequency_penalty
            and not sampling.logit_bias
            and self.position >= self.sequence.request.min_tokens
        )


@dataclass(frozen=True, slots=True)
class Forbidden:
    """What grammars rule out: `tokens` bool `[n, vocab]` in n of a batch's rows, which are `rows`."""

    rows: list[int]
    tokens: torch.Tensor

    def apply(self, logits: torch.Tensor) -> None:
        """Rules it out in `[rows, vocab]`, in place."""
        if self.rows == list(range(len(logits))):
            logits.masked_fill_(self.tokens, NEVER)
        else:
            logits[self.rows] = logits[self.rows].masked_fill(self.tokens, NEVER)


class Shaper:
    """Changes logits in place. It remembers which tokens a sequence has, until it is told to `forget` it."""

    def __init__(self) -> None:
        self._histories: dict[Sequence, History] = {}

    def forget(self, sequence: Sequence) -> None:
        """Drops what is known of a sequence."""
        self._histories.pop(sequence, None)

    def shape(self, logits: torch.Tensor, rows: Items[Row], forbidden: Forbidden | None) -> None:
        """Shapes float32 `[rows, vocab]`."""
        self._penalize(logits, rows)
        _add_bias(logits, rows)
        if forbidden is not None:
            forbidden.apply(logits)
        _keep_going(logits, rows)

    def _penalize(self, logits: torch.Tensor, rows: Items[Row]) -> None:
        penalized = [index for index, row in enumerate(rows) if _has_penalty(row.sampling)]
        if not penalized:
            return
        histories = [self._history(rows[index]).arrays() for index in penalized]
        samplings = [rows[index].sampling for index in penalized]
        lengths = [len(ids) for ids, _ in histories]

        def spread(values: list[float]) -> torch.Tensor:
            return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), lengths)).to(logits.device)

        counts = torch.from_numpy(np.concatenate([counts for _, counts in histories])).to(logits.device)
        at = _places(penalized, [ids for ids, _ in histories], logits.device)
        values = logits[at]
        repetition = spread([sampling.repetition_penalty for sampling in samplings])
        values = torch.where(values > 0, values / repetition, values * repetition)
        presence = spread([sampling.presence_penalty for sampling in samplings])
        frequency = spread([sampling.frequency_penalty for sampling in samplings])
        values = values - presence * (counts > 0) - frequency * counts
        logits[at] = values.clamp_(-_LARGEST, _LARGEST)

    def _history(self, row: Row) -> History:
        history = self._histories.get(row.sequence)
        if history is None:
            history = self._histories[row.sequence] = History(len(row.sequence.request.prompt))
        history.follow(row.sequence.tokens)
        return history.with_tokens(row.ahead) if row.ahead else history


class History:
    """The different tokens of a sequence and how often each stands in its answer."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._length = 0
        self._place: dict[int, int] = {}
        self._ids, self._counts = array("q"), array("q")

    def follow(self, tokens: Items[int]) -> None:
        """Takes in those of a sequence's tokens that have come since the last time."""
        for position in range(self._length, len(tokens)):
            token = tokens[position]
            place = self._place.setdefault(token, len(self._ids))
            if place == len(self._ids):
                self._ids.append(token)
                self._counts.append(0)
            self._counts[place] += position >= self._prompt_tokens
        self._length = len(tokens)

    def with_tokens(self, tokens: Items[int]) -> History:
        """The history that there will be after some more tokens of the answer."""
        later = History(0)
        later._place = dict(self._place)
        later._ids, later._counts = self._ids[:], self._counts[:]
        later.follow(tokens)
        return later

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens, each once, and how often the answer has them; int64 `[different tokens]` both."""
        return np.array(self._ids), np.array(self._counts)


def _has_penalty(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1.0 or bool(sampling.presence_penalty or sampling.frequency_penalty)


def _add_bias(logits: torch.Tensor, rows: Items[Row]) -> None:
    biased = [index for index, row in enumerate(rows) if row.sampling.logit_bias]
    if not biased:
        return
    biases = [rows[index].sampling.logit_bias for index in biased]
    at = _places(biased, [np.fromiter(bias, dtype=np.int64) for bias in biases], logits.device)
    values = np.concatenate([np.fromiter(bias.values(), dtype=np.float32) for bias in biases])
    logits[at] += torch.from_numpy(values).to(logits.device)


def _keep_going(logits: torch.Tensor, rows: Items[Row]) -> None:
    """Rules stop tokens out of answers that are too short, unless a grammar leaves nothing else."""
    short = [
        index
        for index, row in enumerate(rows)
        if row.position < row.sequence.request.min_tokens and row.sequence.request.stop_token_ids
    ]
    if not short:
        return
    stops = [np.fromiter(rows[index].sequence.request.stop_token_ids, dtype=np.int64) for index in short]
    at = _places(short, stops, logits.device)
    before = logits[at]
    logits[at] = NEVER
    stuck = logits.amax(dim=-1) == NEVER
    logits[at] = torch.where(stuck[at[0]], before, NEVER)


def _places(rows: Items[int], ids: Items[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every entry: `ids[i]` are the columns that matter in row `rows[i]`."""
    repeated = np.repeat(np.array(rows, dtype=np.int64), [len(columns) for columns in ids])
    return torch.from_numpy(repeated).to(device), torch.from_numpy(np.concatenate(ids)).to(device)
