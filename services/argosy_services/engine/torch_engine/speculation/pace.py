"""How many tokens to draft: as many as are expected to gain more than they cost.

A drafted token costs one more row in a step and brings a token with the chance that it and all before it are right.
Both are measured. It pays while it brings more tokens a second than the step does without it; as chances fall from
token to token, and a full batch makes rows relatively dear, this alone ends drafts and keeps large batches free of
them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Items
from dataclasses import dataclass

_FADE = 0.98
# Of a step with one row, before anything is known.
_FIRST_SLOPE = 0.1
# A gain below the noise of the measurements is none.
_MARGIN = 1.15
_SMALLEST_CHANCE = 0.1


class StepTimes:
    """Seconds of a decoding step by its rows: the straight line through the steps of late."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    @property
    def known(self) -> bool:
        """Whether there was a step."""
        return self._weight > 0

    def observe(self, rows: int, seconds: float) -> None:
        """Takes in one step; earlier ones fade."""
        self._weight = self._weight * _FADE + 1
        self._rows = self._rows * _FADE + rows
        self._seconds = self._seconds * _FADE + seconds
        self._squares = self._squares * _FADE + rows * rows
        self._products = self._products * _FADE + rows * seconds

    def line(self) -> tuple[float, float]:
        """Seconds that a step takes at least, and seconds that each of its rows adds."""
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - rows * rows
        covariance = self._products / self._weight - rows * seconds
        # A little belief in the first slope, which counts only while steps have hardly differed in their rows.
        slope = (covariance + 0.1 * _FIRST_SLOPE * seconds / rows) / (variance + 0.1)
        slope = min(max(slope, 0.01 * seconds / rows), seconds / rows)
        return seconds - slope * rows, slope


@dataclass(frozen=True, slots=True)
class Prospect:
    """A draft that could be made: of at most `most` tokens, each right with `chance` if those before it are, and each
    for `seconds` of work before the step."""

    most: int
    chance: float
    seconds: float = 0.0


def lengths(prospects: Items[Prospect], times: StepTimes, tokens: int, rows: int) -> list[int]:
    """How many tokens to draft of each, in a step that without drafts draws `tokens` tokens from `rows` rows."""
    base, each = times.line()
    seconds, expected = base + each * rows, float(tokens)
    chosen = [0] * len(prospects)
    # The best token that any of them could have next comes first.
    nexts = [(-_worth(prospect, 0, each), place) for place, prospect in enumerate(prospects) if prospect.most]
    heapq.heapify(nexts)
    while nexts:
        worth, place = nexts[0]
        if -worth < _MARGIN * expected / seconds:
            break
        prospect = prospects[place]
        chosen[place] += 1
        expected += prospect.chance ** chosen[place]
        seconds += each + prospect.seconds
        if chosen[place] < prospect.most:
            heapq.heapreplace(nexts, (-_worth(prospect, chosen[place], each), place))
        else:
            heapq.heappop(nexts)
    return chosen


def likely_lengths(prospects: Items[Prospect]) -> list[int]:
    """How many tokens to draft of each where cost does not count: those that are not most unlikely to be right."""
    return [
        next((n for n in range(prospect.most) if prospect.chance ** (n + 1) < _SMALLEST_CHANCE), prospect.most)
        for prospect in prospects
    ]


def _worth(prospect: Prospect, length: int, each: float) -> float:
    """Tokens that one more drafted token brings for each second that it costs."""
    return prospect.chance ** (length + 1) / (each + prospect.seconds)


class Chances:
    """How often one sequence's guesses were right of late."""

    def __init__(self) -> None:
        self._right, self._made = 1.0, 2.0

    @property
    def chance(self) -> float:
        """That the next guessed token is right if those before it are."""
        return self._right / self._made

    def learn(self, right: int, wrong: bool) -> None:
        """Takes in one guess: so many tokens were right, and the next one was not or is not known."""
        fade = 0.9 ** (right + wrong)
        self._right = self._right * fade + right
        self._made = self._made * fade + right + wrong
