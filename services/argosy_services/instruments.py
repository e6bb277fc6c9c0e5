"""Counters, gauges and histograms: cheap to write on hot paths, read as a whole by whatever exports them.

An instrument has one series for each combination of its labels' values. Look a series up once and keep it: writing to
it takes a lock and an addition, whichever runtime the process belongs to. The number of series is bounded, because
some label values come from what callers do: a label in `bounds` takes that many values and `OTHER` for all further
ones, and an instrument that has `max_series` puts further ones there as well. Series that nobody looked up for a while
make room first, of instruments with a label in `fleeting`: those are looked up for each use and never kept.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

OTHER = "_other"
"""Stands for all values of a label that found no room. No adapter, model or tenant can have this name."""

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]


class Value:
    """The series of a counter or gauge."""

    __slots__ = ("_amount", "_lock", "_read", "asked")

    def __init__(self, _buckets: tuple[float, ...]) -> None:
        self.asked = 0.0
        self._lock = threading.Lock()
        self._amount = 0.0
        self._read: Callable[[], float] | None = None

    def inc(self, amount: float = 1.0) -> None:
        """Adds; a counter only goes up."""
        with self._lock:
            self._amount += amount

    def dec(self, amount: float = 1.0) -> None:
        """Takes away, from a gauge."""
        self.inc(-amount)

    def set(self, amount: float) -> None:
        """Sets a gauge."""
        self._amount = float(amount)

    def read(self, reading: Callable[[], float]) -> None:
        """From now on the value is what `reading` gives when it is exported; any thread calls it."""
        self._read = reading

    def now(self) -> float:
        """The value."""
        return self._amount if self._read is None else float(self._read())


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram's series holds: how many values fell into each bucket, the last one without an upper end, and
    the sum of the values.
    """

    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Histogram:
    """The series of a histogram. A value belongs to the first bucket whose upper end is not below it."""

    __slots__ = ("_buckets", "_counts", "_lock", "_sum", "asked")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.asked = 0.0
        self._lock = threading.Lock()
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Takes note of a value that occurred so many times."""
        place = bisect_left(self._buckets, value)
        with self._lock:
            self._counts[place] += times
            self._sum += value * times

    def now(self) -> Distribution:
        """What came until now."""
        with self._lock:
            return Distribution(tuple(self._counts), self._sum)


class _MutedValue(Value):
    """Stands for every counter and gauge where nothing is counted."""

    def inc(self, amount: float = 1.0) -> None: ...
    def set(self, amount: float) -> None: ...


class _MutedHistogram(Histogram):
    """Stands for every histogram where nothing is counted."""

    def observe(self, value: float, times: int = 1) -> None: ...


Series = TypeVar("Series", Value, Histogram)


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the table. `name` is without the `_total` that counters are exported with; `buckets` are upper ends,
    rising and above 0.
    """

    name: str
    kind: Kind
    unit: str
    labels: Labels
    help: str
    buckets: tuple[float, ...] = ()


@dataclass(slots=True)
class Limits:
    """How many series there may be; see the module. One is idle after `idle_s` seconds: by then it was exported often
    enough that nothing is lost with it. Where they are `muted` no new ones come, and nothing is counted in what stands
    for them.
    """

    bounds: dict[str, int] = field(default_factory=dict)
    max_series: int = 1_000
    fleeting: frozenset[str] = frozenset()
    idle_s: float = 600.0
    muted: bool = False


class Instrument(Generic[Series]):
    """All series of one row."""

    def __init__(self, spec: Spec, make: Callable[[tuple[float, ...]], Series], mute: Series, limits: Limits) -> None:
        self.spec = spec
        self._mute = mute
        self._make = make
        self._limits = limits
        self._fleeting = not limits.fleeting.isdisjoint(spec.labels)
        self._lock = threading.Lock()
        self._series: dict[Labels, Series] = {}
        self._rows: dict[str, Callable[[], Mapping[Labels, float]]] = {}
        self._alone = make(spec.buckets) if not spec.labels else None
        if self._alone is not None:
            self._series[()] = self._alone

    def labels(self, **values: str) -> Series:
        """The series of these values, one for each label of the row. Raises KeyError where one is missing."""
        wanted = tuple(values[name] for name in self.spec.labels)
        found = self._series.get(wanted)
        if found is None:
            if self._limits.muted:
                return self._mute
            with self._lock:
                found = self._series.setdefault(self._bounded(wanted), self._make(self.spec.buckets))
        if self._fleeting:
            found.asked = time.monotonic()
        return found

    @property
    def only(self) -> Series:
        """The one series of an instrument without labels."""
        if self._alone is None:
            raise TypeError(f"{self.spec.name} has labels: {', '.join(self.spec.labels)}")
        return self._alone

    def read_rows(self, source: str, reading: Callable[[], Mapping[Labels, float]]) -> None:
        """From now on there are also the series that `reading` gives when they are exported, as many as there may be:
        for what comes and goes. Any thread calls it. One of the same `source` takes its place.
        """
        self._rows[source] = reading

    def now(self) -> list[tuple[Labels, Series]]:
        """Every series, with its values in the order of the row's labels."""
        with self._lock:
            found = dict(self._series)
        for reading in list(self._rows.values()):
            for labels, amount in reading().items():
                if len(found) >= self._limits.max_series:
                    break
                series = self._make(self.spec.buckets)
                if isinstance(series, Value):
                    series.set(amount)
                found[labels] = series
        return list(found.items())

    def _bounded(self, wanted: Labels) -> Labels:
        if wanted in self._series:
            return wanted
        bounded = self._put_together(wanted)
        if bounded != wanted and self._fleeting and self._drop_idle():
            return self._put_together(wanted)
        return bounded

    def _drop_idle(self) -> int:
        since = time.monotonic() - self._limits.idle_s
        idle = [labels for labels, series in self._series.items() if series.asked <= since]
        for labels in idle:
            del self._series[labels]
        return len(idle)

    def _put_together(self, wanted: Labels) -> Labels:
        full = len(self._series) >= self._limits.max_series
        return tuple(
            OTHER if (full and name in self._limits.bounds) or self._has_no_room(place, name, value) else value
            for place, (name, value) in enumerate(zip(self.spec.labels, wanted, strict=True))
        )

    def _has_no_room(self, place: int, name: str, value: str) -> bool:
        bound = self._limits.bounds.get(name)
        if bound is None:
            return False
        present = {labels[place] for labels in self._series} - {OTHER}
        return value not in present and len(present) >= bound


_Row = TypeVar("_Row", Instrument[Value], Instrument[Histogram])


class Table:
    """The rows in their order."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._rows: dict[str, Instrument[Any]] = {}

    def __iter__(self) -> Iterator[Instrument[Value] | Instrument[Histogram]]:
        return iter(self._rows.values())

    def counter(self, name: str, unit: str, help: str, labels: Labels = ()) -> Instrument[Value]:
        """Adds a row for what only grows."""
        return self._add(Instrument(Spec(name, "counter", unit, labels, help), Value, _MutedValue(()), self.limits))

    def gauge(self, name: str, unit: str, help: str, labels: Labels = ()) -> Instrument[Value]:
        """Adds a row for what goes up and down."""
        return self._add(Instrument(Spec(name, "gauge", unit, labels, help), Value, _MutedValue(()), self.limits))

    def histogram(
        self,
        name: str,
        unit: str,
        help: str,
        labels: Labels = (),
        *,
        buckets: tuple[float, ...],
    ) -> Instrument[Histogram]:
        """Adds a row for what is distributed."""
        return self._add(
            Instrument(
                Spec(name, "histogram", unit, labels, help, buckets), Histogram, _MutedHistogram(()), self.limits
            )
        )

    def _add(self, row: _Row) -> _Row:
        if row.spec.name in self._rows:
            raise ValueError(f"{row.spec.name} stands in the table twice")
        self._rows[row.spec.name] = row
        return row
