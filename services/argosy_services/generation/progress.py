"""How far one sequence has come: its times, its counts, their metrics and their spans."""

from __future__ import annotations

import time
from dataclasses import replace

from argosy_services import metrics, tracing
from argosy_services.engine.base import Request, StepOutput, Timings


class Meters:
    """The instruments of one model, looked up once."""

    def __init__(self, model: str) -> None:
        self.prompt_tokens = metrics.PROMPT_TOKENS.labels(model=model)
        self.cached_tokens = metrics.CACHED_PROMPT_TOKENS.labels(model=model)
        self.generated_tokens = metrics.GENERATED_TOKENS.labels(model=model)
        self.time_to_first_token = metrics.TIME_TO_FIRST_TOKEN.labels(model=model)
        self.inter_token = metrics.INTER_TOKEN.labels(model=model)
        self.queue = metrics.QUEUE_SECONDS.labels(model=model)


class Progress:
    """Follows one sequence from submission to its end. Times are those of `time.monotonic()`, `last` that of the last
    output.
    """

    def __init__(self, request: Request, meters: Meters, now: float) -> None:
        self.prompt_tokens = len(request.prompt)
        self.cached_tokens = 0
        self._meters = meters
        self._tokens = 0
        self._submitted = now
        self._first: float | None = None
        self.last = now
        self._timings: Timings | None = None

    def see(self, output: StepOutput, now: float) -> None:
        """Takes note of an output that reached this process at `now`."""
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self._timings = output.timings or self._timings
        tokens = len(output.token_ids)
        if not (tokens or output.logprobs):
            return
        self._tokens += tokens
        self._meters.generated_tokens.inc(tokens)
        if self._first is None:
            self._first = now
            if tokens:
                self._meters.time_to_first_token.observe(now - self._submitted)
        else:
            for _ in range(tokens):
                self._meters.inter_token.observe((now - self.last) / tokens)
        self.last = now

    @property
    def began(self) -> bool:
        """Whether anything came of it."""
        return self._first is not None

    def end(self) -> None:
        """The sequence has finished or was cancelled; what never ran is not counted."""
        if self._first is None:
            return
        self._meters.prompt_tokens.inc(self.prompt_tokens - self.cached_tokens)
        self._meters.cached_tokens.inc(self.cached_tokens)
        self._meters.queue.observe(self.timings.queue_s)

    @property
    def timings(self) -> Timings:
        """The engine's own figures; those that it had no chance to give are what was seen from here."""
        first = self.last if self._first is None else self._first
        seen = Timings(prefill_s=first - self._submitted, decode_s=self.last - first)
        if self._timings is None:
            return seen
        return replace(self._timings, decode_s=max(self._timings.decode_s, seen.decode_s))

    def record(self, trace: tracing.LiveSpan) -> None:
        """Adds the stages to `trace` as its children.

        They are laid backwards from the first token, which this process saw itself: the engine may be in another
        process, and what its figures leave out was the way there.
        """
        if self._first is None:
            trace.stage("queue", self._submitted, time.monotonic(), {"argosy.ended_early": True})
            return
        timings = self.timings
        admitted = max(self._submitted, self._first - timings.prefill_s)
        arrived = max(self._submitted, admitted - timings.queue_s)
        preempted = [("preempted", arrived + after) for after in timings.preempted_s]
        if timings.grammar_s:
            trace.stage("compile grammar", arrived, arrived + timings.grammar_s)
        trace.stage("queue", self._submitted, admitted)
        counts = {"argosy.prompt_tokens": self.prompt_tokens, "argosy.cached_tokens": self.cached_tokens}
        trace.stage("prefill", admitted, self._first, counts, [event for event in preempted if event[1] < self._first])
        if self._tokens:
            after = [event for event in preempted if event[1] >= self._first]
            trace.stage("decode", self._first, self.last, {"argosy.completion_tokens": self._tokens}, after)
