"""Patterns from files: PEFT's matches, in bounded time."""

from __future__ import annotations

import time

import pytest

from argosy_services.engine.torch_engine.lora.patterns import PatternError, PatternTable

PATHS = [
    f"model.layers.{layer}.{module}" for layer in range(32) for module in ("self_attn.q_proj", "mlp.down_proj", "o")
]


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|aa)+",
        "(?=a)",
        "(?P<x>a)",
        r"(a)\1",
        r"\Z",
        "a{1000}",
        ".*.*.*.*.*x",
        "(.|.)" * 40,
        "(a|b",
        "a)(b",
        "[a",
        "*",
        "x" * 1001,
    ],
)
def test_what_may_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        PatternTable({pattern: 1}, PATHS)


def test_many_keys_are_bounded_together() -> None:
    with pytest.raises(PatternError, match="too complex"):
        PatternTable({f"{number}.*x": 1 for number in range(20_000)}, PATHS)


def test_the_worst_that_is_accepted_is_quick() -> None:
    """The slowest pattern that passes: as many quantifiers and alternatives as the bound allows."""
    table = PatternTable({r".*(.|.|.|.).*(.|.|.)x": 1}, PATHS)
    start = time.perf_counter()
    for path in PATHS:
        assert table.get(path, 0) == 0
    assert time.perf_counter() - start < 5


def test_the_first_pattern_that_matches_counts() -> None:
    table = PatternTable({r"layers\.[0-4]\.self_attn\.q_proj": 1, "q_proj": 2, "^layers": 3, "roj": 4}, PATHS)
    assert table.get("model.layers.3.self_attn.q_proj", 0) == 1
    assert table.get("model.layers.5.self_attn.q_proj", 0) == 2
    assert table.get("model.layers.5.mlp.down_proj", 0) == 0


@pytest.mark.parametrize("pattern", [r"[]q]_proj", r"[^]x]_proj", r"(?:q|k)_proj", r"\w_proj", r"self_attn\.q?_proj"])
def test_ordinary_syntax_is_understood(pattern: str) -> None:
    assert PatternTable({pattern: 1}, PATHS).get("model.layers.0.self_attn.q_proj", 0) == 1
