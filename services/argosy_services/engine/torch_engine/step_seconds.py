"""How long steps take by their rows, as measured on the way."""

from __future__ import annotations


class StepSeconds:
    """The least seconds of late, for each power of two of rows by itself: what is known of small steps stays while all
    are large, and what else keeps the machine busy makes steps longer but never shorter.

    Plain Python, so that the scheduler's decisions can be tested without a model.
    """

    def __init__(self) -> None:
        self._steps: dict[int, tuple[int, float]] = {}  # Rows and seconds.

    def observe(self, rows: int, seconds: float) -> None:
        """Takes in one step. Longer steps are believed step by step."""
        size = rows.bit_length()
        if size in self._steps:
            seconds = min(seconds, self._steps[size][1] * 1.25)
        self._steps[size] = rows, seconds

    def fixed_share(self, rows: int) -> float | None:
        """Which part of a step of `rows` rows it would take without any: from the straight line through such steps and
        the smallest. None where steps were not different enough to tell."""
        size, least = rows.bit_length(), min(self._steps, default=0)
        if size not in self._steps or least >= size:
            return None
        few, own = self._steps[least]
        many, all_ = self._steps[size]
        return max(0.0, (own * many - all_ * few) / ((many - few) * all_))

    def doubt(self) -> None:
        """Lets the time of small steps fade where it keeps them from being made, so that they are tried again."""
        least = min(self._steps)
        rows, seconds = self._steps[least]
        self._steps[least] = rows, seconds * 0.99
