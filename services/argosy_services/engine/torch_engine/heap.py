"""A heap whose items can be taken out from anywhere."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

# Entries of items that were taken out stay in the heap until they come up, or until they are the larger part of it.
_FEW = 16


class Heap(Generic[T]):
    """Items in the order of their keys, those of equal keys in the order in which they came.

    Every method takes logarithmic time, averaged over calls. Keys of one heap can be compared with each other.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Any, int, T]] = []
        self._current: dict[T, tuple[Any, int, T]] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, item: T) -> bool:
        return item in self._current

    def __iter__(self) -> Iterator[T]:
        return iter(self._current)

    def key(self, item: T) -> Any:
        """The key under which an item was put in."""
        return self._current[item][0]

    def push(self, item: T, key: Any) -> None:
        """Puts an item in; one that is in already gets the new key."""
        entry = (key, next(self._numbers), item)
        self._current[item] = entry
        heapq.heappush(self._entries, entry)
        self._tidy()

    def discard(self, item: T) -> None:
        """Takes an item out, if it is in."""
        if self._current.pop(item, None) is not None:
            self._tidy()

    def first(self) -> T | None:
        """The item with the smallest key, which stays in; None where there is none."""
        while self._entries:
            entry = self._entries[0]
            if self._current.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(self._entries)
        return None

    def _tidy(self) -> None:
        if len(self._entries) > 2 * len(self._current) + _FEW:
            self._entries = list(self._current.values())
            heapq.heapify(self._entries)
