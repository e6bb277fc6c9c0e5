"""Where the time of a request went, and what it waited for."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from argosy_services.engine.base import Ahead, Timings

if TYPE_CHECKING:
    from argosy_services.generation.account import Account


class RequestState(enum.Enum):
    """How a request stands."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(enum.Enum):
    """A part of a request's time; they follow each other.

    DELIVER is from the engine's last output to the end of the call. ADMISSION is the time in the engine before anything
    of it is known: queue and prefill of a request that has no token yet.
    """

    TOKENIZE = "tokenize"
    CHECK_GRAMMAR = "check grammar"
    WAIT_FOR_ADAPTER = "wait for adapter"
    COMPILE_GRAMMAR = "compile grammar"
    ADMISSION = "admission"
    QUEUE = "queue"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"
    DELIVER = "deliver"


class Cause(enum.Enum):
    """What a request waited for."""

    QUEUE = "queue"
    ADAPTER = "adapter"
    GRAMMAR = "grammar"
    PREEMPTION = "preemption"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that a request waited for.

    `ahead` tells who was in the engine before it, `adapter` which one it waited for, `times` how often it was
    preempted. `short_of` is what the engine had too little of when its turn came: "blocks" of the cache or "places" in
    the batch; empty where it did not have to wait for either.
    """

    cause: Cause
    seconds: float
    ahead: Ahead | None = None
    short_of: str = ""
    adapter: str = ""
    times: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """One request, at a moment. `seconds` is from its arrival to its end, or until now."""

    request_id: str
    state: RequestState
    reason: str
    model: str
    adapter: str
    priority: int
    came: datetime
    seconds: float
    stages: tuple[tuple[Stage, float], ...]
    waits: tuple[Wait, ...]
    sequences: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def explained(account: Account) -> Explanation:
    """What is known of a request now."""
    now = time.monotonic() if account.ended is None else account.ended
    longest = account.longest
    return Explanation(
        request_id=account.request_id,
        state=account.state,
        reason=account.reason,
        model=account.model,
        adapter=account.adapter,
        priority=account.priority,
        came=account.came,
        seconds=now - account.arrived,
        stages=tuple((stage, seconds) for stage, seconds in _stages(account, now) if seconds > 0),
        waits=tuple(_waits(account)),
        sequences=account.sequences or len(account.progress),
        prompt_tokens=account.prompt_tokens or (longest.prompt_tokens if longest else 0),
        cached_tokens=longest.cached_tokens if longest else 0,
        completion_tokens=account.tokens,
    )


def _stages(account: Account, now: float) -> Iterator[tuple[Stage, float]]:
    """The stages of the sequence that took longest, and those before it and after it."""
    yield Stage.TOKENIZE, account.tokenization_s
    yield Stage.CHECK_GRAMMAR, account.grammar_check_s
    yield Stage.WAIT_FOR_ADAPTER, account.adapter_wait_s
    longest, told = account.longest, account.timings
    if longest is None:
        return
    if not longest.began or told is None:
        yield Stage.ADMISSION, now - longest.submitted
        return
    seen = longest.timings
    before, after = _preempted(told)
    yield Stage.COMPILE_GRAMMAR, seen.grammar_s
    yield Stage.QUEUE, seen.queue_s - seen.grammar_s
    yield Stage.PREFILL, seen.prefill_s - before
    yield Stage.DECODE, seen.decode_s - after
    yield Stage.PREEMPTED, before + after
    if account.ended is not None:
        yield Stage.DELIVER, now - longest.last


def _waits(account: Account) -> Iterator[Wait]:
    if account.adapter_wait_s > 0:
        yield Wait(Cause.ADAPTER, account.adapter_wait_s, adapter=account.adapter)
    told = account.timings
    if told is not None:
        if told.grammar_s:
            yield Wait(Cause.GRAMMAR, told.grammar_s)
        yield Wait(Cause.QUEUE, told.queue_s - told.grammar_s, ahead=told.ahead, short_of=told.short_of)
        if told.preempted_s:
            yield Wait(Cause.PREEMPTION, told.requeued_s, times=len(told.preempted_s))
    if account.reader_s > 0:
        yield Wait(Cause.READER, account.reader_s)


def _preempted(told: Timings) -> tuple[float, float]:
    """Seconds without a place before the first token, and after it."""
    if not told.preempted_s:
        return 0.0, 0.0
    first_token = told.queue_s + told.prefill_s
    return (0.0, told.requeued_s) if told.preempted_s[-1] >= first_token else (told.requeued_s, 0.0)
