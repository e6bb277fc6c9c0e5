"""Prompt lookup (Saxena, 2023): what followed the last time that the sequence had the tokens it ends with."""

from __future__ import annotations

from collections.abc import Sequence as Items

# Longer matches are better guesses; a single token is hardly one.
_LENGTHS = (4, 3, 2)


class PromptLookup:
    """The places of one sequence's n-grams; takes in its new tokens whenever it is asked."""

    def __init__(self) -> None:
        self._length = 0
        # By hash: two n-grams that meet in one cost a wrong guess and nothing else.
        self._follows: dict[int, int] = {}

    def guess(self, tokens: Items[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow; none where the end of the sequence has not occurred before."""
        self._take_in(tokens)
        end = len(tokens)
        for length in _LENGTHS:
            follows = self._follows.get(hash(tuple(tokens[end - length :]))) if length < end else None
            if follows is not None:
                return _repeat(tokens[follows : follows + most], most)
        return ()

    def _take_in(self, tokens: Items[int]) -> None:
        for end in range(max(self._length, 1), len(tokens)):
            for length in _LENGTHS:
                if length <= end:
                    self._follows[hash(tuple(tokens[end - length : end]))] = end
        self._length = len(tokens)


def _repeat(tokens: Items[int], most: int) -> tuple[int, ...]:
    """Where the end of the sequence is reached, it is taken to go round: what repeats itself goes on doing so."""
    return tuple(tokens[place % len(tokens)] for place in range(most))
