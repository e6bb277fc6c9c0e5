"""What was measured, in a file that an interrupted run goes on from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from side_by_side.figures import Figures


@dataclass(slots=True)
class Outcome:
    """One shape: the samples of each entry by its label, in the order of measuring.

    `run` tells when and on what, `versions` what each entry is made of, `errors` why an entry has no more samples.
    """

    run: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: dict[str, list[Figures]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def median(self, label: str, figure: str) -> float | None:
        """Over the samples; None where there is no such figure."""
        values = [sample[figure] for sample in self.samples.get(label, ()) if figure in sample]
        return statistics.median(values) if values else None

    def median_ratio(self, one: str, other: str, figure: str) -> float | None:
        """The median over the rounds of one entry's figure by another's; None where no round has both."""
        rounds = zip(self.samples.get(one, ()), self.samples.get(other, ()), strict=False)
        ratios = [left[figure] / right[figure] for left, right in rounds if figure in left and figure in right]
        return statistics.median(ratios) if ratios else None


class Results:
    """Outcomes by the name of their shape."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {}
        self.outcomes: dict[str, Outcome] = {name: Outcome(**outcome) for name, outcome in found.items()}

    def begin(self, shape: str, run: Mapping[str, str], *, resume: bool) -> Outcome:
        """The outcome of a shape: the one in the file where its run goes on, else a new one in its place."""
        if not resume or shape not in self.outcomes:
            self.outcomes[shape] = Outcome(run=dict(run))
        outcome = self.outcomes[shape]
        outcome.errors = {}
        return outcome

    def save(self) -> None:
        """Writes the file, which is never seen half-written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        text = json.dumps({name: asdict(outcome) for name, outcome in self.outcomes.items()}, indent=1)
        fresh.write_text(text + "\n")
        fresh.replace(self.path)
