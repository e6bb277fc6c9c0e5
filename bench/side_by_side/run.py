"""Measures shapes: their entries in turn, round by round, so that all meet the same weather."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil

from side_by_side.base import Side, SideError, checked
from side_by_side.figures import Figures, figures
from side_by_side.results import Outcome, Results
from side_by_side.shapes import Entry, Shape
from side_by_side.sides import Places, Spec, make

# Idle threads of the side before still spin, some of them for seconds.
_PAUSE_S, _MOST_PAUSES, _QUIET_PERCENT = 0.5, 10, 5.0
_WARM_UP_TOKENS = 8


@dataclass(slots=True)
class Pool:
    """Processes that run, by what they are."""

    places: Places
    _sides: dict[Spec, Side] = field(default_factory=dict)

    async def get(self, spec: Spec) -> Side:
        """The side, started where it is not running yet. Raises SideError."""
        if spec not in self._sides:
            print(f"  starting {spec.label} {spec.adapters}".rstrip(), flush=True)
            side = make(spec, self.places)
            try:
                await side.start()
            except BaseException:
                await side.stop()
                raise
            self._sides[spec] = side
        return self._sides[spec]

    async def drop(self, spec: Spec) -> None:
        """Ends a side that broke, so that the next shape starts it anew."""
        if side := self._sides.pop(spec, None):
            await side.stop()

    async def keep(self, specs: Collection[Spec]) -> None:
        """Ends those that nobody needs any more, each of them even where another one will not end."""
        leaving = [spec for spec in self._sides if spec not in specs]
        for error in await asyncio.gather(*map(self.drop, leaving), return_exceptions=True):
            if error is not None:
                raise error


@dataclass(frozen=True, slots=True)
class Run:
    """How to measure. An entry whose load takes longer than `patience_s` is measured in one round only."""

    specs: Sequence[Spec]
    rounds: int
    patience_s: float
    resume: bool
    about: Mapping[str, str]
    results: Results
    pool: Pool

    async def measure(self, shapes: Sequence[Shape]) -> None:
        """Measures all of it, saving after every sample."""
        needed = [[entry.spec for entry in shape.entries(self.specs)] if not shape.fresh else [] for shape in shapes]
        try:
            for number, shape in enumerate(shapes):
                await self.pool.keep({spec for later in needed[number:] for spec in later})
                await self._shape(shape)
        finally:
            await self.pool.keep(())

    async def _shape(self, shape: Shape) -> None:
        entries = shape.entries(self.specs)
        outcome = self.results.begin(shape.name, self.about, resume=self.resume)
        print(f"{shape.name}: {', '.join(entry.label for entry in entries)}", flush=True)
        warm: set[str] = set()
        for number in range(self.rounds):
            # Each round begins with another entry.
            shift = number % max(1, len(entries))
            for entry in (*entries[shift:], *entries[:shift]):
                if self._wanted(outcome, entry, number):
                    await self._entry(shape, entry, number, outcome, warm)
                    self.results.save()

    def _wanted(self, outcome: Outcome, entry: Entry, number: int) -> bool:
        samples = outcome.samples.get(entry.label, [])
        slow = bool(samples) and samples[0]["seconds"] > self.patience_s
        return entry.label not in outcome.errors and len(samples) <= number and not slow

    async def _entry(self, shape: Shape, entry: Entry, number: int, outcome: Outcome, warm: set[str]) -> None:
        try:
            if shape.fresh:
                sample = await self._fresh(shape, entry, number, outcome)
            else:
                sample = await self._sample(shape, entry, number, outcome, warm)
        except SideError as error:
            outcome.errors[entry.label] = str(error)
            print(f"  {entry.label}: FAILED: {error}", flush=True)
            await self.pool.drop(entry.spec)
            return
        outcome.samples.setdefault(entry.label, []).append(sample)
        told = ", ".join(f"{name} {value:,.4g}" for name, value in sample.items())
        print(f"  round {number + 1} of {self.rounds}, {entry.label}: {told}", flush=True)

    async def _sample(self, shape: Shape, entry: Entry, number: int, outcome: Outcome, warm: set[str]) -> Figures:
        side = await self.pool.get(entry.spec)
        outcome.versions[entry.label] = dict(side.versions)
        if entry.label not in warm:
            short = [
                replace(request, max_tokens=min(request.max_tokens, _WARM_UP_TOKENS))
                for request in shape.requests(entry, "warm-up")
            ]
            checked(short, await side.generate(short))
            warm.add(entry.label)
        requests = shape.requests(entry, number)
        await _quiet()
        return figures(requests, checked(requests, await side.generate(requests)))

    async def _fresh(self, shape: Shape, entry: Entry, number: int, outcome: Outcome) -> Figures:
        requests = shape.requests(entry, number)
        side = make(entry.spec, self.pool.places)
        await _quiet()
        started = time.perf_counter()
        try:
            await side.start()
            checked(requests, await side.generate(requests))
            seconds = time.perf_counter() - started
        finally:
            await side.stop()
        outcome.versions[entry.label] = dict(side.versions)
        return {"seconds": seconds}


async def _quiet() -> None:
    """Waits until the machine's cores rest, or for as long as is reasonable where they never do."""
    psutil.cpu_percent()
    for _ in range(_MOST_PAUSES):
        await asyncio.sleep(_PAUSE_S)
        if psutil.cpu_percent() < _QUIET_PERCENT:
            return
