"""Where the time of a request went, and what it waited for."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime


class RequestState(enum.StrEnum):
    """How a request stands."""

    UNKNOWN = "unknown"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(enum.StrEnum):
    """A part of a request's time."""

    UNKNOWN = "unknown"
    TOKENIZE = "tokenize"
    CHECK_GRAMMAR = "check_grammar"
    WAIT_FOR_ADAPTER = "wait_for_adapter"
    COMPILE_GRAMMAR = "compile_grammar"
    ADMISSION = "admission"
    QUEUE = "queue"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    DELIVER = "deliver"


class WaitCause(enum.StrEnum):
    """What a request waited for."""

    UNKNOWN = "unknown"
    QUEUE = "queue"
    ADAPTER = "adapter"
    GRAMMAR = "grammar"
    PREEMPTION = "preemption"
    READER = "reader"


@dataclass(frozen=True)
class StageTime:
    """The time of one stage."""

    stage: Stage
    seconds: float


@dataclass(frozen=True)
class Ahead:
    """Sequences that went before one when it came to the engine: of the same key, of others, of higher priority."""

    own: int
    others: int
    higher_priority: int
    waiting_tokens: int


@dataclass(frozen=True)
class Wait:
    """One thing that a request waited for."""

    cause: WaitCause
    seconds: float
    ahead: Ahead | None = None
    short_of: str = ""
    adapter: str = ""
    times: int = 0


@dataclass(frozen=True)
class Explanation:
    """One request: `seconds` from its arrival to its end, and where they went."""

    request_id: str
    state: RequestState
    reason: str
    model: str
    adapter: str
    priority: int
    arrived: datetime
    seconds: float
    stages: tuple[StageTime, ...]
    waits: tuple[Wait, ...]
    sequence_count: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
