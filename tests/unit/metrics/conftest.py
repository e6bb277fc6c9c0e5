"""What these tests say that there is must not be there for tests of the same process that look for leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from argosy_services.instruments import Instrument, Value


@pytest.fixture
def pretend() -> Iterator[Callable[[Instrument[Value], str, float], None]]:
    """Sets a gauge of a model for the length of the test."""
    touched: list[Value] = []

    def pretend(gauge: Instrument[Value], model: str, amount: float) -> None:
        touched.append(gauge.labels(model=model))
        touched[-1].set(amount)

    yield pretend
    for series in touched:
        series.set(0)
