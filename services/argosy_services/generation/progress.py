"""How far one sequence has come: its times, its counts and their metrics."""

from __future__ import annotations

from dataclasses import replace

from argosy_services import metrics
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
    """Follows one sequence from submission to its end. Times are those of `time.monotonic()`."""

    def __init__(self, request: Request, meters: Meters, now: float) -> None:
        self.prompt_tokens = len(request.prompt)
        self.cached_tokens = 0
        self._meters = meters
        self._submitted = now
        self._first: float | None = None
        self._last = now
        self._timings: Timings | None = None

    def see(self, output: StepOutput, now: float) -> None:
        """Takes note of an output that reached this process at `now`."""
        self.cached_tokens = max(self.cached_tokens, output.cached_tokens)
        self._timings = output.timings or self._timings
        tokens = len(output.token_ids)
        if not (tokens or output.logprobs):
            return
        self._meters.generated_tokens.inc(tokens)
        if self._first is None:
            self._first = now
            if tokens:
                self._meters.time_to_first_token.observe(now - self._submitted)
        else:
            for _ in range(tokens):
                self._meters.inter_token.observe((now - self._last) / tokens)
        self._last = now

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
        first = self._last if self._first is None else self._first
        seen = Timings(prefill_s=first - self._submitted, decode_s=self._last - first)
        if self._timings is None:
            return seen
        return replace(self._timings, decode_s=max(self._timings.decode_s, seen.decode_s))
