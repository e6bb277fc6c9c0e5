"""Checks of single values that servicers share. Each raises INVALID_FIELD with the field, the limit and the value."""

from __future__ import annotations

import math

from argosy_services.errors import input_too_large, invalid_field, too_many_inputs


def number(field: str, value: float, *, low: float, high: float, above_low: bool = False) -> float:
    """A finite number from `low` (exclusive where `above_low`) to `high`."""
    bracket = f"{'above' if above_low else 'at least'} {low:g} and at most {high:g}"
    if not math.isfinite(value) or value > high or value < low or (above_low and value == low):
        raise invalid_field(field, f"must be {bracket}", limit=bracket, value=value)
    return value


def count(field: str, given: int, *, limit: int) -> None:
    """Between one and `limit` inputs."""
    if given == 0:
        raise invalid_field(field, "must not be empty", limit=f"1 to {limit}", value=0)
    if given > limit:
        raise too_many_inputs(field, limit=limit, value=given)


def text_size(field: str, text: str, *, limit_bytes: int) -> None:
    """At most `limit_bytes` bytes of UTF-8."""
    # A character has 1 to 4 bytes: most texts are decided without encoding them.
    if len(text) * 4 <= limit_bytes:
        return
    size = len(text.encode())
    if size > limit_bytes:
        raise input_too_large(field, limit=limit_bytes, value=size)
