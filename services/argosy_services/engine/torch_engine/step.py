"""What one step computes, and which of its logits are wanted. Without torch: scheduler and runners share it."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from argosy_services.engine.torch_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens to be computed in one step: `count` of them from position `start` of a sequence on.

    The last of them are of `draft`: guesses of what follows the sequence's own tokens, whose keys and values lie in its
    blocks beyond `computed` until they are either accepted or written over.
    """

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def completes(self) -> bool:
        """Whether the next token can be drawn after it."""
        return self.start + self.count == len(self.sequence.tokens) + len(self.draft)

    def token_ids(self) -> list[int]:
        """The `count` tokens to be computed."""
        end, own = self.start + self.count, len(self.sequence.tokens)
        return [*self.sequence.tokens[self.start : end], *self.draft[max(0, self.start - own) : max(0, end - own)]]


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Rows `first` to `first + count` of a step's logits belong to `work`; row i predicts the token after position
    `position + i`."""

    work: Work
    first: int
    count: int
    position: int


def wanted_rows(work: Items[Work]) -> tuple[list[int], list[RowSpan]]:
    """Which of a step's rows need logits, in the order of `work`, and to which item they belong.

    They are the last own row and those of the draft of each item that completes its sequence, or those before each
    scored token.
    """
    rows: list[int] = []
    spans: list[RowSpan] = []
    base = 0
    for item in work:
        wanted = _wanted_positions(item)
        if wanted:
            spans.append(RowSpan(item, len(rows), len(wanted), wanted.start))
            rows.extend(base + position - item.start for position in wanted)
        base += item.count
    return rows, spans


def _wanted_positions(item: Work) -> range:
    end = item.start + item.count
    score_from = item.sequence.request.score_from
    if score_from is None:
        return range(max(item.start, end - 1 - len(item.draft)), end) if item.completes else range(0)
    return range(max(item.start, score_from - 1), min(end, len(item.sequence.tokens) - 1))
