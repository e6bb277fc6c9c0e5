"""How tests steer the stand-in, and where it tells what was done wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Control:
    """`answer` is drawn for every request where it is set; `eos` are the model's end tokens."""

    vocabulary: int = 64
    eos: tuple[int, ...] = (2,)
    answer: list[int] | None = None
    step_s: float = 0.0
    # What the next request meets once it runs.
    fail_next: str | None = None
    finish_next: str | None = None
    keeps_end_token: bool = True
    prompt_logprobs: str = "short"
    hides_drawn: bool = False
    failing_constructions: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    stats_fail: bool = False

    llms: list[Any] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    seen_params: list[Any] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    stats_readers: int = 0
    stats_asked_early: int = 0


control = Control()


def reset() -> Control:
    fresh = Control()
    control.__dict__.update(fresh.__dict__)
    return control
