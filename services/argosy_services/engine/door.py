"""Who is let into an engine, and when the others shall come back.

An engine that queued everything would answer everybody too late. Two limits hold instead, on sequences and on the
prompt tokens that wait. For each priority they are counted over what goes before it, so that a backlog of little
importance refuses nobody who is more important. A tenant that has less than its share of the places is let in even
where others fill them all: with n tenants a limit is exceeded at most 1 + 1/2 + ... + 1/n times.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from argosy_services.engine.base import Ahead, Request
from argosy_services.errors import ArgosyError, Reason

# How long a caller is told to wait before anything was measured, and the bounds of what it is told later.
_UNMEASURED_S = 1.0
_SHORTEST_S = 0.1
_LONGEST_S = 60.0
_HALF_LIFE_S = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be in an engine at once."""

    sequences: int
    waiting_tokens: int


class Door:
    """Counts what is in an engine. For any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._inside: dict[str, Request] = {}
        self._sequences = _Load()
        self._prompts: dict[str, Request] = {}
        self._calls: Counter[str] = Counter()
        self._tokens = _Load()
        self._left = _Pace()
        self._read = _Pace()
        self._busy_s = 0.0
        self._looked = clock()
        self._next_place = 0.0

    def __len__(self) -> int:
        """How many sequences are in."""
        return len(self._inside)

    def enter(self, request: Request, limits: Limits) -> Ahead:
        """Lets a sequence in and says who is there before it. Raises QUEUE_FULL.

        One that goes on from another engine is always let in: it was, when it came to that one. So is one whose call
        has another sequence inside: it would be refused for the sake of its own kind, however often it came back.
        """
        tokens = len(request.prompt)
        with self._lock:
            self._pass_time()
            if not request.generated and not (request.call and self._calls[request.call]):
                self._check(request, tokens, limits)
            ahead = self._ahead(request)
            self._inside[request.id] = self._prompts[request.id] = request
            self._calls[request.call] += 1
            self._sequences.add(request, 1)
            self._tokens.add(request, tokens)
            return ahead

    def start(self, request_id: str) -> None:
        """A sequence has got its place: its prompt waits no longer. For the second and later times nothing happens."""
        with self._lock:
            self._pass_time()
            self._stop_waiting(request_id)

    def leave(self, request_id: str) -> None:
        """A sequence is over. One that is not inside is ignored."""
        with self._lock:
            self._pass_time()
            self._stop_waiting(request_id)
            request = self._inside.pop(request_id, None)
            if request is not None:
                self._calls[request.call] -= 1
                if not self._calls[request.call]:
                    del self._calls[request.call]
                self._sequences.add(request, -1)
                self._left.note(1, self._busy_s)

    def _ahead(self, request: Request) -> Ahead:
        all_before, own = self._sequences.before(request), self._sequences.own_before(request)
        return Ahead(
            own=own,
            others=all_before - own,
            higher_priority=_at_least(self._sequences.total, request.priority + 1),
            waiting_tokens=self._tokens.before(request),
        )

    def _stop_waiting(self, request_id: str) -> None:
        request = self._prompts.pop(request_id, None)
        if request is not None:
            self._tokens.add(request, -len(request.prompt))
            self._read.note(len(request.prompt), self._busy_s)

    def _check(self, request: Request, tokens: int, limits: Limits) -> None:
        if self._sequences.exceeds(request, 1, limits.sequences):
            found, limit, unit = self._sequences.before(request), limits.sequences, "sequences run or wait"
            delay = self._retry_after(1, self._left)
        elif self._tokens.before(request) and self._tokens.exceeds(request, tokens, limits.waiting_tokens):
            found, limit, unit = self._tokens.before(request), limits.waiting_tokens, "prompt tokens wait"
            delay = self._retry_after(tokens, self._read)
        else:
            return
        raise ArgosyError(
            Reason.QUEUE_FULL,
            f"{found} {unit} already, of at most {limit}; retry in {delay:.1f} s, or send less at once",
            limit=limit,
            value=found,
            retry_after_s=delay,
        )

    def _retry_after(self, amount: int, pace: _Pace) -> float:
        """When there will be room, by the pace of late. The second to be refused is told a later time than the first:
        coming back together, all but one would be refused again.
        """
        per_second = pace.per_second(self._busy_s)
        if not per_second:
            return _UNMEASURED_S
        now = self._clock()
        self._next_place = min(max(now, self._next_place) + amount / per_second, now + _LONGEST_S)
        return max(_SHORTEST_S, self._next_place - now)

    def _pass_time(self) -> None:
        """Only the time in which there is work tells how fast it is done."""
        now = self._clock()
        if self._inside:
            self._busy_s += now - self._looked
        self._looked = now


@dataclass(slots=True)
class _Load:
    """An amount by priority, and of it each tenant's."""

    total: Counter[int] = field(default_factory=Counter)
    tenants: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, request: Request, amount: int) -> None:
        own = self.tenants.setdefault(request.tenant, Counter())
        for counts in (self.total, own):
            counts[request.priority] += amount
            if not counts[request.priority]:
                del counts[request.priority]
        if not own:
            del self.tenants[request.tenant]

    def before(self, request: Request) -> int:
        """What goes before a request: all of the same and of higher priorities."""
        return _at_least(self.total, request.priority)

    def own_before(self, request: Request) -> int:
        """Of it what is its tenant's."""
        own = self.tenants.get(request.tenant)
        return _at_least(own, request.priority) if own else 0

    def exceeds(self, request: Request, amount: int, limit: int) -> bool:
        """Whether one more would be too much, of all and of its tenant."""
        if self.before(request) + amount <= limit:
            return False
        present = len(self.tenants.keys() | {request.tenant})
        return present == 1 or self.own_before(request) + amount > limit // present


class _Pace:
    """How much happens in a second, of late: what is older counts less."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._at = 0.0

    def note(self, amount: float, now: float) -> None:
        """Something happened. Times are seconds since the same moment, and do not go back."""
        self._amount = self._amount * _fading(now - self._at) + amount
        self._at = now

    def per_second(self, now: float) -> float:
        """0 where nothing is known."""
        # What a steady pace of 1 would have left here since the beginning.
        steady = (1.0 - _fading(now)) * _HALF_LIFE_S / math.log(2)
        return self._amount * _fading(now - self._at) / steady if steady else 0.0


def _at_least(amounts: Counter[int], priority: int) -> int:
    return sum(amount for given, amount in amounts.items() if given >= priority)


def _fading(seconds: float) -> float:
    return 0.5 ** (seconds / _HALF_LIFE_S)
