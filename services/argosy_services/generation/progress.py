"""How far one sequence has come: its times, its counts, their metrics and their spans."""

from __future__ import annotations

import time
from dataclasses import replace

from argosy_services import metrics, tracing
from argosy_services.engine.base import Finish, Request, StepOutput, Timings


class Meters:
    """The instruments of one model, looked up once."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.prompt_tokens = metrics.PROMPT_TOKENS.labels(model=model)
        self.cached_tokens = metrics.CACHED_PROMPT_TOKENS.labels(model=model)
        self.generated_tokens = metrics.GENERATED_TOKENS.labels(model=model)
        self.time_to_first_token = metrics.TIME_TO_FIRST_TOKEN.labels(model=model)
        self.inter_token = metrics.INTER_TOKEN.labels(model=model)
        self.queue = metrics.QUEUE_SECONDS.labels(model=model)
        self.grammar = metrics.GRAMMAR_SECONDS.labels(model=model)
        self.prefill = metrics.PREFILL_SECONDS.labels(model=model)
        self.decode = metrics.DECODE_SECONDS.labels(model=model)
        self.end_to_end = metrics.END_TO_END.labels(model=model)
        self.time_per_token = metrics.TIME_PER_OUTPUT_TOKEN.labels(model=model)
        self.sequence_prompt = metrics.SEQUENCE_PROMPT_TOKENS.labels(model=model)
        self.sequence_generated = metrics.SEQUENCE_GENERATED_TOKENS.labels(model=model)

    def finished(self, finish: str) -> None:
        """Counts a sequence that is over; `finish` says how."""
        metrics.SEQUENCES_FINISHED.labels(model=self._model, finish=finish).inc()


class Progress:
    """Follows one sequence from submission to its end. Times are those of `time.monotonic()`, `last` that of the last
    output.
    """

    def __init__(self, request: Request, meters: Meters, now: float) -> None:
        self.prompt_tokens = len(request.prompt)
        self.cached_tokens = 0
        self._meters = meters
        self.tokens = 0
        self.submitted = now
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
        self.tokens += tokens
        self._meters.generated_tokens.inc(tokens)
        if self._first is None:
            self._first = now
            if tokens:
                self._meters.time_to_first_token.observe(now - self.submitted)
        else:
            self._meters.inter_token.observe((now - self.last) / max(1, tokens), tokens)
        self.last = now

    @property
    def told(self) -> Timings | None:
        """The engine's own figures, once it has told them."""
        return self._timings

    @property
    def began(self) -> bool:
        """Whether anything came of it."""
        return self._first is not None

    def end(self, finish: Finish | None) -> None:
        """The sequence has finished, or was cancelled (None); of what never ran only that is counted."""
        meters = self._meters
        meters.finished("cancelled" if finish is None else finish.value)
        if self._first is None:
            return
        timings = self.timings
        meters.prompt_tokens.inc(self.prompt_tokens - self.cached_tokens)
        meters.cached_tokens.inc(self.cached_tokens)
        meters.sequence_prompt.observe(self.prompt_tokens)
        meters.sequence_generated.observe(self.tokens)
        meters.queue.observe(timings.queue_s)
        meters.prefill.observe(timings.prefill_s)
        meters.end_to_end.observe(self.last - self.submitted)
        if timings.grammar_s:
            meters.grammar.observe(timings.grammar_s)
        if self.tokens:
            meters.decode.observe(timings.decode_s)
        if self.tokens > 1:
            meters.time_per_token.observe(timings.decode_s / (self.tokens - 1))

    @property
    def timings(self) -> Timings:
        """The engine's own figures; those that it had no chance to give are what was seen from here."""
        first = self.last if self._first is None else self._first
        seen = Timings(prefill_s=first - self.submitted, decode_s=self.last - first)
        if self._timings is None:
            return seen
        return replace(self._timings, decode_s=max(self._timings.decode_s, seen.decode_s))

    def record(self, trace: tracing.LiveSpan) -> None:
        """Adds the stages to `trace` as its children.

        They are laid backwards from the first token, which this process saw itself: the engine may be in another
        process, and what its figures leave out was the way there.
        """
        if self._first is None:
            trace.stage("queue", self.submitted, time.monotonic(), {"argosy.ended_early": True})
            return
        timings = self.timings
        admitted = max(self.submitted, self._first - timings.prefill_s)
        arrived = max(self.submitted, admitted - timings.queue_s)
        preempted = [("preempted", arrived + after) for after in timings.preempted_s]
        if timings.grammar_s:
            trace.stage("compile grammar", arrived, arrived + timings.grammar_s)
        trace.stage("queue", self.submitted, admitted)
        counts = {"argosy.prompt_tokens": self.prompt_tokens, "argosy.cached_tokens": self.cached_tokens}
        trace.stage("prefill", admitted, self._first, counts, [event for event in preempted if event[1] < self._first])
        if self.tokens:
            after = [event for event in preempted if event[1] >= self._first]
            trace.stage("decode", self._first, self.last, {"argosy.completion_tokens": self.tokens}, after)
