"""Checks of single values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc import validate


@pytest.mark.parametrize("value", [-0.1, 2.1, math.nan, math.inf, -math.inf])
def test_numbers_out_of_range(value: float) -> None:
    with pytest.raises(ArgosyError) as caught:
        validate.number("temperature", value, low=0, high=2)
    assert caught.value.reason is Reason.INVALID_FIELD
    assert caught.value.metadata["field"] == "temperature"


def test_numbers_at_the_bounds() -> None:
    assert validate.number("x", 0, low=0, high=2) == 0
    assert validate.number("x", 2, low=0, high=2) == 2
    with pytest.raises(ArgosyError):
        validate.number("x", 0, low=0, high=2, above_low=True)


def test_counts() -> None:
    validate.count("texts", 1, limit=2)
    validate.count("texts", 2, limit=2)
    for given_count, reason in ((0, Reason.INVALID_FIELD), (3, Reason.TOO_MANY_INPUTS)):
        with pytest.raises(ArgosyError) as caught:
            validate.count("texts", given_count, limit=2)
        assert caught.value.reason is reason


@given(st.text(max_size=20))
def test_sizes_are_those_of_utf_8(text: str) -> None:
    size = len(text.encode())
    validate.text_size("text", text, limit_bytes=size)
    if size:
        with pytest.raises(ArgosyError) as caught:
            validate.text_size("text", text, limit_bytes=size - 1)
        assert caught.value.metadata["value"] == str(size)
