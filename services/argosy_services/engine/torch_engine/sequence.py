"""A request's state while it is in the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from argosy_services.engine.base import Ahead, Request, Timings, TokenLogprobs


@dataclass(slots=True, eq=False)
class Sequence:
    """One running or waiting request.

    `tokens` are prompt and answer; `computed` of them have their keys and values in the blocks of `table`, of which
    `cached` tokens were found there on admission. `digests` name the full blocks; see `kv_cache.py`. `scores`
    collects what a scoring request asked for. `matcher` is the state of its grammar, None without one. Times are those
    of `time.monotonic()`, 0 until they come; `preempted` are those at which it lost its blocks, `requeued` the seconds
    that it was without. `ahead` and `short_of` are those of `engine.base.Timings`.

    `number` counts sequences by arrival. `rank` is its priority, and the highest once its turn has come although others
    were before it. `charged` tokens were put on its tenant's account; see `fair_queue.py`.
    """

    request: Request
    tokens: list[int]
    arrived: float = field(default_factory=time.monotonic)
    compiled: float = 0.0
    admitted: float = 0.0
    first_token: float = 0.0
    computed: int = 0
    cached: int = 0
    table: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    scores: list[TokenLogprobs] = field(default_factory=list)
    matcher: object | None = None
    namespace: str = ""
    number: int = -1
    rank: int = 0
    charged: int = 0
    preempted: list[float] = field(default_factory=list)
    requeued: float = 0.0
    ahead: Ahead | None = None
    short_of: str = ""

    @classmethod
    def of(cls, request: Request) -> Sequence:
        """A sequence that has not run yet."""
        tokens = [*request.prompt, *request.generated]
        return cls(request, tokens, namespace=request.namespace, rank=request.priority)

    @property
    def deadline(self) -> float | None:
        """The time of `time.monotonic()` after which nobody waits for it."""
        return None if self.request.timeout_s is None else self.arrived + self.request.timeout_s

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def pending(self) -> int:
        """Tokens that must be computed before the next one can be drawn."""
        return len(self.tokens) - self.computed

    def timings(self, now: float) -> Timings:
        """Where the time went until now."""
        first = self.first_token or now
        return Timings(
            queue_s=self.admitted - self.arrived,
            prefill_s=first - self.admitted,
            decode_s=now - first,
            grammar_s=max(0.0, self.compiled - self.arrived),
            preempted_s=tuple(at - self.arrived for at in self.preempted),
            requeued_s=self.requeued,
            ahead=self.ahead,
            short_of=self.short_of,
        )
