"""Between an engine's thread and the event loop.

Outputs of steps cross the border together, in one callback, when somebody has waited for them: waking the event loop
costs more than what it then does, where it finds its caches full of an engine's weights. They are handed to the runs
that they belong to. A run is a few sequences of one request; leaving it cancels whatever of it the engine still works
on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TypeAlias

import structlog

from argosy_services import tracing
from argosy_services.engine.base import Finish, Request, SequenceRunner, StepOutput
from argosy_services.errors import ArgosyError, Reason, deadline_exceeded
from argosy_services.generation.pace import Pace
from argosy_services.generation.progress import Meters, Progress

log = structlog.get_logger("argosy.generation")

# Sequences of one request that have spans of their own; a call that scores may have hundreds.
_MOST_TRACED = 32


class EngineBridge:
    """Owns the life of an engine and shares its outputs out. Lives on the event loop's thread."""

    def __init__(self, engine: SequenceRunner, model: str) -> None:
        self.engine = engine
        self.meters = Meters(model)
        self._model = model
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runs: dict[str, Run] = {}
        self._steps: deque[tuple[list[StepOutput], float]] = deque()

    def start(self) -> None:
        """Starts the engine; its outputs go to the loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self.engine.start(self._on_step)

    def close(self) -> None:
        """Stops the engine. Runs in progress end with DRAINING."""
        self.engine.close()

    def run(self, deadline: float | None = None, pace: Pace | None = None) -> Run:
        """A new run, to be used as a context manager. At `deadline` it fails with DEADLINE_EXCEEDED; the first and the
        last news come at once, those between them at the ticks of `pace`.
        """
        return Run(self, deadline, pace or Pace())

    def register(self, request: Request, run: Run) -> None:
        """Submits a sequence whose outputs go to `run`. Raises what `Engine.submit` raises, and STARTING."""
        if self._loop is None:
            raise ArgosyError(Reason.STARTING, "the engine has not been started; retry soon", retry_after_s=1.0)
        self.engine.submit(request)
        # In time: outputs are shared out by this thread, and not before it returns to the event loop.
        self._runs[request.id] = run

    def cancel(self, request_id: str) -> None:
        """Ends a sequence; nothing more of it is delivered. An id that is not running is ignored."""
        if self._runs.pop(request_id, None) is not None:
            self.engine.cancel(request_id)

    def _on_step(self, outputs: list[StepOutput]) -> None:
        """Runs on the engine's thread."""
        loop, now = self._loop, time.monotonic()
        if loop is None:
            return
        self._steps.append((outputs, now))
        if not any(self._is_awaited(output, now) for output in outputs):
            return
        try:
            loop.call_soon_threadsafe(self.distribute)
        except RuntimeError:
            log.warning("the event loop was closed before the engine", model=self._model)
            self._loop = None

    def _is_awaited(self, output: StepOutput, now: float) -> bool:
        """Runs on the engine's thread, which may see a sequence before `register` has noted it."""
        run = self._runs.get(output.request_id)
        return run is None or output.finish is not None or run.is_due(now)

    def distribute(self) -> None:
        """Hands the outputs that are there to their runs."""
        while self._steps:
            outputs, came = self._steps.popleft()
            for output in outputs:
                ended = output.finish is not None
                run = self._runs.pop(output.request_id, None) if ended else self._runs.get(output.request_id)
                if run is not None:
                    run.deliver(output, came)


Watch: TypeAlias = Callable[[StepOutput], bool]


class Run:
    """Some sequences of one request, read together by one consumer."""

    def __init__(self, bridge: EngineBridge, deadline: float | None, pace: Pace) -> None:
        self.progress: dict[str, Progress] = {}
        self._pace = pace
        self._due = 0.0
        self._at_once = False
        self._ticking = False
        self._bridge = bridge
        self._trace = tracing.here()
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None
        self._inbox: list[StepOutput] = []
        self._running: set[str] = set()
        self._watches: dict[str, Watch] = {}
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def __enter__(self) -> Run:
        if self._deadline is not None:
            delay = max(0.0, self._deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self.fail, deadline_exceeded())
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _raised: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            self._bridge.distribute()  # What was generated and not yet read counts as well.
        self._cancel_all()
        if self._trace is not None:
            self._record(self._trace)

    def submit(self, request: Request, watch: Watch | None = None, *, at_once: bool = False) -> None:
        """Gives a sequence to the engine. `watch` is shown each output, with `at_once` when it comes, however long the
        consumer has to wait, and tells whether the sequence ends with it: it is then freed at once, as finished by a
        stop. What it raises the consumer gets.

        Raises QUEUE_FULL, KV_CACHE_FULL, ADAPTER_NOT_FOUND or ENGINE_FAILED.
        """
        if self._error is not None:
            raise self._error
        now = time.monotonic()
        if self._deadline is not None:
            request = replace(request, timeout_s=max(0.0, self._deadline - now))
        progress = Progress(request, self._bridge.meters, now)
        self._bridge.register(request, self)
        self._running.add(request.id)
        self._pace.began()
        self.progress[request.id] = progress
        if watch is not None:
            self._watches[request.id] = watch
        self._at_once = self._at_once or at_once

    def cancel(self, request_id: str, finish: Finish | None = None) -> None:
        """Ends one sequence: the engine frees it before its next step, and no output of it follows. `finish` says how
        it ended, where its reader has all of it.
        """
        if request_id in self._running:
            self._bridge.cancel(request_id)
            self._end(request_id, finish)

    def fail(self, error: Exception) -> None:
        """Ends the whole run: the engine is freed at once, and the consumer gets `error` after the outputs that are
        there already.
        """
        self._bridge.distribute()
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        """As `fail`, while the bridge hands out what is there."""
        self._error = self._error or error
        self._cancel_all()
        self._news.set()

    def is_due(self, now: float) -> bool:
        """Whether an output that comes now should reach the run at once, and not with the tick that it waits for."""
        return self._at_once or not self._ticking or now >= self._due

    def deliver(self, output: StepOutput, came: float) -> None:
        """Takes an output of one of the run's sequences, which the engine gave at `came`; called by the bridge."""
        progress = self.progress[output.request_id]
        progress.see(output, came)
        if output.finish is not None:
            self._end(output.request_id, output.finish)
        if output.finish is Finish.FAILED:
            self._fail(output.error or _engine_failed())
            return
        self._inbox.append(output)
        try:
            watch = self._watches.get(output.request_id)
            if watch is not None and watch(output):
                self.cancel(output.request_id, Finish.STOP)
        except Exception as fault:  # The consumer's own: others have outputs in this step too.
            self._fail(fault)
            return
        now = time.monotonic()
        if not self._running or now >= self._due:
            self._news.set()
        elif not self._ticking:
            self._wait_for_tick(now)

    async def next(self) -> list[StepOutput]:
        """Waits for news and returns all outputs since the last call, in their order.

        Raises the error of the first sequence that failed, DEADLINE_EXCEEDED at the run's deadline, or what `fail` was
        given.
        """
        await self._news.wait()
        while not self._inbox and self._error is None:  # A tick that comes late is for news which were taken before it.
            self._news.clear()
            await self._news.wait()
        self._news.clear()
        if self._error is not None:
            if not self._inbox:
                raise self._error
            self._news.set()
        outputs, self._inbox = self._inbox, []
        if self._running and not self._ticking:
            self._wait_for_tick(time.monotonic())
        return outputs

    def _wait_for_tick(self, now: float) -> None:
        self._due = self._pace.call_at_tick(self._tick, now)
        self._ticking = self._due > now

    def _tick(self) -> None:
        self._ticking = False
        self._bridge.distribute()
        if self._inbox:
            self._news.set()

    def _record(self, trace: tracing.LiveSpan) -> None:
        """Makes spans of what the engine did, and of how long its last output took to whoever read it."""
        for progress in islice(self.progress.values(), _MOST_TRACED):
            progress.record(trace)
        if last := [progress.last for progress in self.progress.values() if progress.began]:
            trace.stage("deliver", max(last), time.monotonic())

    def _cancel_all(self) -> None:
        for request_id in tuple(self._running):
            self.cancel(request_id)

    def _end(self, request_id: str, finish: Finish | None) -> None:
        self._running.discard(request_id)
        progress = self.progress[request_id]
        progress.end(finish)
        self._pace.ended()


def _engine_failed() -> ArgosyError:
    return ArgosyError(Reason.ENGINE_FAILED, "the engine gave up this sequence; retry", retry_after_s=1.0)
