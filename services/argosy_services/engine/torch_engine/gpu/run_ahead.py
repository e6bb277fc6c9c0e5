"""Starts the next decode step before the tokens of the last one are known here.

Between two steps a GPU would wait for the host: until it has seen which tokens were chosen, told everybody, and decided
what comes next. While sequences just decode greedily, what comes next is nearly always the same rows with the tokens
that the step chose itself. So it is started at once, as a processor runs on after a branch; asked for, it is there, and
if something else is asked for it is forgotten. Nothing is lost then: what it wrote lies at places that are written
again before they are read.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.gpu.decode_step import DecodeStep, Tokens
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Row
from argosy_services.engine.torch_engine.step import Work

# Steps without one ahead, after one that nobody asked for.
_REST = 32


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A step that was started after that of `work`, whose tokens are `before`; its own are `tokens`. `blocks` are those
    that it writes to."""

    work: tuple[Work, ...]
    blocks: tuple[int, ...]
    before: Tokens
    tokens: Tokens


class RunAhead:
    """Decode steps, each perhaps started before it was asked for. Lives on the engine's thread."""

    def __init__(self, step: DecodeStep, *, enabled: bool) -> None:
        self._step = step
        self._enabled = enabled
        self._ahead: _Ahead | None = None
        self._rest = 0
        self._last: tuple[torch.Tensor, Tokens, list[int]] | None = None

    def run(self, work: Items[Work], *, alone: bool) -> torch.Tensor:
        """Logits float32 `[rows, vocab]` of work of one token each, until the next call.

        `alone`: nothing else is computed with them. Then, where nothing but the likeliest tokens is wanted, the next
        step may be started, which writes over the logits.
        """
        ahead, self._ahead = self._ahead, None
        rows = None if ahead is None else self._found(work, ahead)
        if ahead is None or rows is None:
            self._rest = max(0, self._rest - 1) if ahead is None else _REST
            tokens, rows, count = self._step.run(work), list(range(len(work))), len(work)
        else:
            tokens, count = ahead.tokens, len(ahead.work)
        whole = rows == list(range(count))
        logits = self._step.logits[:count] if whole else self._step.logits[rows]
        self._last = logits, tokens, rows
        if alone and whole and self._enabled and not self._rest and self._goes_on(work):
            blocks = tuple(self._block(item, item.start + 1) for item in work)
            self._ahead = _Ahead(tuple(work), blocks, tokens, self._step.again(work))
        return logits

    def forget(self) -> None:
        """What was started is not what comes next."""
        self._ahead = None

    def likeliest(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The likeliest tokens int64 `[rows]`, in the host's memory, if `logits` are what `run` gave last."""
        if self._last is None or self._last[0] is not logits:
            return None
        _, tokens, rows = self._last
        return tokens.wait()[rows]

    def _found(self, work: Items[Work], ahead: _Ahead) -> list[int] | None:
        """The rows of the step ahead that `work` is; None if it is not there."""
        row_of = {item.sequence: row for row, item in enumerate(ahead.work)}
        chosen = ahead.before.wait().tolist()
        rows: list[int] = []
        for item in work:
            row = row_of.get(item.sequence)
            if row is None or item.start != ahead.work[row].start + 1:
                return None
            if item.token_ids() != [chosen[row]] or self._block(item, item.start) != ahead.blocks[row]:
                return None
            rows.append(row)
        return rows

    def _goes_on(self, work: Items[Work]) -> bool:
        """Whether the next step is likely to be that of the same rows, and may be run without more of the host."""
        goes_on = False
        for item in work:
            sequence = item.sequence
            after = item.start + 1
            if after >= min(self._step.max_positions, len(sequence.table) * self._step.block_tokens):
                return False
            if not _is_greedy(sequence):
                return False
            goes_on = goes_on or sequence.generated + 1 < sequence.request.max_tokens
        return goes_on

    def _block(self, item: Work, position: int) -> int:
        return item.sequence.table[position // self._step.block_tokens]


def _is_greedy(sequence: Sequence) -> bool:
    """Whether nothing of a row's logits is wanted but the likeliest token."""
    sampling = sequence.request.sampling
    return (
        sampling.temperature <= 0
        and sampling.logprobs is None
        and sequence.matcher is None
        and sequence.request.score_from is None
        and Row(sequence, ()).untouched
    )
