"""Texts of any lengths as one row of tokens, without padding.

Everything but attention and pooling treats each token by itself, so texts simply follow one another. Those two go by
groups of texts of one length, which are dense tensors as well: no mask, no padding, and no text that its neighbours
in the batch could change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring texts of one length: `texts` of `tokens` tokens each, from row `start` on."""

    start: int
    texts: int
    tokens: int

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """The group's part of `rows` [rows, ...], as a view [texts, tokens, ...]."""
        return rows[self.start : self.start + self.texts * self.tokens].unflatten(0, (self.texts, self.tokens))

    def parts(self, texts: int) -> Iterator[Group]:
        """The group cut into groups of at most `texts` texts."""
        for first in range(0, self.texts, texts):
            yield Group(self.start + first * self.tokens, min(texts, self.texts - first), self.tokens)


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch. `ids` and `positions` are int64 [rows]; `order` int64 [texts] has the place of each packed text."""

    ids: torch.Tensor
    positions: torch.Tensor
    groups: list[Group]
    order: torch.Tensor


def pack(batch: Sequence[Sequence[int]]) -> Packed:
    """The token ids of one or more texts, each with at least one, shortest text first."""
    order = sorted(range(len(batch)), key=lambda place: len(batch[place]))
    groups: list[Group] = []
    start = 0
    for tokens, texts in itertools.groupby(len(batch[place]) for place in order):
        groups.append(Group(start, len(list(texts)), tokens))
        start += groups[-1].texts * tokens
    return Packed(
        ids=torch.tensor(list(itertools.chain.from_iterable(batch[place] for place in order))),
        positions=torch.cat([torch.arange(group.tokens).repeat(group.texts) for group in groups]),
        groups=groups,
        order=torch.tensor(order),
    )
