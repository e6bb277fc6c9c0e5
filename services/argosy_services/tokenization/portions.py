"""Cuts long work into portions, so that it takes turns with other work and ends soon after its caller left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

S = TypeVar("S", bound=Sequence[object])

# About a tenth of a second of tokenization.
SIZE = 1 << 18


def portions(inputs: Sequence[S], size: int = SIZE) -> Iterator[Sequence[S]]:
    """Neighbouring inputs, texts or lists of ids, of `size` characters or ids together, the last one's excess apart."""
    start = held = 0
    for end, item in enumerate(inputs, start=1):
        held += len(item)
        if held >= size or end == len(inputs):
            yield inputs[start:end]
            start, held = end, 0
