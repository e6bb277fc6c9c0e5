"""The engine's one thread: takes commands, schedules, runs, draws, and hands out what is new."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import structlog
import torch

from argosy_services.engine.base import EngineStats, Finish, Request, StepCallback, StepOutput, TokenLogprobs
from argosy_services.engine.door import Door, Limits
from argosy_services.engine.failures import adapter_gone, not_running
from argosy_services.engine.meters import EngineMeters
from argosy_services.engine.torch_engine.grammar import GrammarCompiler, Matcher
from argosy_services.engine.torch_engine.masks import MaskMaker, StepMasks
from argosy_services.engine.torch_engine.runners import Adapters, Runner
from argosy_services.engine.torch_engine.sampler import Sampler, describe
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.shaping import Row
from argosy_services.engine.torch_engine.speculation.speculator import Speculator
from argosy_services.engine.torch_engine.step import RowSpan, Work
from argosy_services.engine.torch_engine.taking import take
from argosy_services.errors import ArgosyError, Reason, deadline_exceeded

log = structlog.get_logger("argosy.engine")

# So long without work is a rest, in which the runner prepares; callers who take turns leave less between theirs.
_QUIET_S = 0.1
# The longest wait for a step to begin: where steps take longer, a load lasts a smaller part of them.
_MOMENT_S = 0.03


@dataclass(frozen=True, slots=True)
class Parts:
    """What a loop works with; nobody else touches them once it runs."""

    model: str
    scheduler: Scheduler
    runner: Runner
    adapters: Adapters
    grammars: GrammarCompiler
    masks: MaskMaker
    sampler: Sampler
    speculator: Speculator | None
    threads: int


class EngineLoop(threading.Thread):
    """Runs sequences until it is stopped or a fault ends it."""

    def __init__(self, parts: Parts, on_step: StepCallback) -> None:
        super().__init__(name=f"engine-{parts.model}", daemon=True)
        self.parts = parts
        self._on_step = on_step
        self._meters = EngineMeters(parts.model)
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition(threading.RLock())
        self._sequences: dict[str, Sequence] = {}
        self._unqueued: set[Sequence] = set()
        self._users: Counter[str] = Counter()  # Sequences by adapter.
        self._outputs: list[StepOutput] = []
        self._steps = 0
        self._door = Door()
        self._unsettled = True
        self._computing = threading.Condition()
        self._closed = False
        self._stopping = False
        self.fault: Exception | None = None
        self.stats = self._picture()

    def post(self, command: Callable[[], None]) -> None:
        """Has the engine's thread run a command before its next step. For any thread. Raises ENGINE_FAILED."""
        with self._wake:
            if self._closed:
                raise not_running() from self.fault
            self._commands.append(command)
            self._wake.notify()

    def offer(self, request: Request, limits: Limits) -> None:
        """Has a sequence queued. For any thread. Raises QUEUE_FULL or ENGINE_FAILED."""
        sequence = Sequence.of(request)
        with self._wake:
            if self._closed:
                raise not_running() from self.fault
            sequence.ahead = self._door.enter(request, limits)
            self.post(lambda: self._submit(sequence))

    def await_step(self) -> None:
        """Waits until the engine begins to compute its next step, in which its thread has no need of the interpreter;
        not at all where nothing is running, and a moment at most. For any thread."""
        with self._computing:
            if self.stats.running and not self._closed:
                self._computing.wait(_MOMENT_S)

    def stop(self) -> None:
        """Ends the thread after the step that runs, if no fault did. For any thread."""
        with suppress(ArgosyError):
            self.post(self._end)
        self.join()

    def run(self) -> None:
        """The thread's body."""
        torch.set_num_threads(self.parts.threads)
        try:
            while not self._stopping:
                self._run_commands()
                self._step()
                self._hand_out()
            self._shut(ArgosyError(Reason.DRAINING, "the engine is shutting down; retry elsewhere", retry_after_s=1.0))
        except Exception as fault:
            log.error("engine stopped by a fault", model=self.parts.model, exc_info=fault)
            self.fault = fault
            self._shut(not_running())

    # Commands: run on the engine's thread.

    def _submit(self, sequence: Sequence) -> None:
        request = sequence.request
        self._sequences[request.id] = sequence
        self._unqueued.add(sequence)
        if request.adapter is not None:
            self._users[request.adapter] += 1
        if request.adapter is not None and request.adapter not in self.parts.adapters:
            self._fail(sequence, adapter_gone(request.adapter))
        elif request.grammar is not None:
            matcher = self.parts.grammars.matcher(request.grammar, request.generated)
            matcher.add_done_callback(lambda done: self._post_compiled(sequence, done))
        else:
            self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        self._unqueued.remove(sequence)
        self.parts.scheduler.add(sequence)

    def _post_compiled(self, sequence: Sequence, matcher: Future[Matcher]) -> None:
        """Runs on a thread of the compiler."""
        with suppress(ArgosyError):  # An engine that ended in between has ended the sequence.
            self.post(lambda: self._compiled(sequence, matcher))

    def _compiled(self, sequence: Sequence, matcher: Future[Matcher]) -> None:
        if sequence not in self._unqueued:
            return  # It was cancelled, or its adapter left.
        try:
            sequence.matcher = matcher.result()
            sequence.compiled = time.monotonic()
        except ArgosyError as error:
            self._fail(sequence, error)
        else:
            self._queue(sequence)

    def cancel(self, request_id: str, asked: float) -> None:
        """Frees a sequence; one that is over already is ignored."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._remove(sequence)
            self._meters.cancel_to_free.observe(time.monotonic() - asked)

    def drop_adapter(self, key: str) -> None:
        """Frees an adapter's slot and ends the sequences that still use it."""
        for sequence in list(self._sequences.values()):
            if sequence.request.adapter == key:
                self._fail(sequence, adapter_gone(key))
        self.parts.adapters.drop(key)

    def check_integrity(self) -> None:
        """Raises RuntimeError where blocks leaked or the books disagree."""
        scheduler = self.parts.scheduler
        scheduler.check_integrity()
        if len(self._sequences) != len(scheduler.running) + len(scheduler.waiting) + len(self._unqueued):
            raise RuntimeError("the engine's books and the scheduler's disagree")

    def _end(self) -> None:
        self._stopping = True

    # One step.

    def _run_commands(self) -> None:
        self._await_work(_QUIET_S if self._unsettled else None)
        while not self._has_work():
            self._unsettled = self.parts.runner.settle()
            self._await_work(0 if self._unsettled else None)
        self._drain_commands()
        self.stats = self._picture()

    def _await_work(self, seconds: float | None) -> None:
        with self._wake:
            self._wake.wait_for(self._has_work, seconds)

    def _has_work(self) -> bool:
        return bool(self._commands) or len(self._sequences) > len(self._unqueued)

    def _drain_commands(self) -> None:
        # One by one: should a command fail, those after it are still there to be run when the loop shuts.
        while self._commands:
            self._commands.popleft()()

    def _step(self) -> None:
        preemptions, lost = self.parts.scheduler.preemptions, self.parts.scheduler.lost_tokens
        for late in self.parts.scheduler.expired(time.monotonic()):
            self._fail(late, deadline_exceeded())
        work = self.parts.scheduler.schedule()
        for sequence in self.parts.scheduler.admitted:
            self._door.start(sequence.request.id)
        self._meters.preempted(self.parts.scheduler.preemptions - preemptions, self.parts.scheduler.lost_tokens - lost)
        if not work:
            return
        if self.parts.speculator is not None:
            work = self.parts.speculator.extend(work)
        started = time.perf_counter()
        masks = self.parts.masks.start(work)
        with self._computing:
            self._computing.notify_all()
        logits, spans = self.parts.runner.run(work)
        self.parts.scheduler.advance(work)
        scored = [span for span in spans if span.work.sequence.request.score_from is not None]
        for span in scored:
            self._score(logits[span.first : span.first + span.count], span)
        drawn = [span for span in spans if span.work.sequence.request.score_from is None]
        if drawn:
            rows = [row for span in drawn for row in range(span.first, span.first + span.count)]
            self._draw(logits[rows] if scored else logits, drawn, masks)
        for sequence in {item.sequence for item in work if item.completes}:
            if sequence.request.score_from is not None:
                self._finish_score(sequence)
        seconds = time.perf_counter() - started
        if self.parts.speculator is not None:
            self.parts.speculator.observe(work, seconds)
        self._steps += 1
        tokens = sum(item.count for item in work)
        self.parts.scheduler.seconds.observe(tokens, seconds)
        self._meters.stepped(len(work), tokens, seconds)

    def _draw(self, logits: torch.Tensor, spans: list[RowSpan], masks: StepMasks | None) -> None:
        now = time.monotonic()
        rows = [Row(span.work.sequence, span.work.draft[:ahead]) for span in spans for ahead in range(span.count)]
        forbidden = None if masks is None else masks.of(rows, logits.device)
        drawn = self.parts.sampler.draw(logits, rows, forbidden)
        first = 0
        for span in spans:
            self._take(span.work, drawn[first : first + span.count], now)
            first += span.count

    def _take(self, item: Work, drawn: list[tuple[int, TokenLogprobs | None]], now: float) -> None:
        sequence = item.sequence
        request = sequence.request
        sequence.first_token = sequence.first_token or now
        first = sequence.generated == len(request.generated)
        try:
            taken = take(sequence, item.draft, drawn)
        except ArgosyError as error:
            # A grammar's fault is its request's own.
            self._fail(sequence, error)
            return
        sequence.tokens.extend(taken.tokens)
        if item.draft:
            self.parts.scheduler.accept(sequence, taken.accepted)
            self._meters.guessed(len(item.draft), taken.accepted)
        if taken.finish is not None:
            self._remove(sequence)
        self._outputs.append(
            StepOutput(
                request.id,
                token_ids=taken.tokens,
                logprobs=taken.logprobs,
                finish=taken.finish,
                cached_tokens=sequence.cached,
                timings=sequence.timings(now) if taken.finish is not None or first else None,
            )
        )

    def _score(self, logits: torch.Tensor, span: RowSpan) -> None:
        sequence = span.work.sequence
        targets = sequence.tokens[span.position + 1 : span.position + 1 + span.count]
        top = max(1, sequence.request.sampling.logprobs or 1)
        # One that lost its place is read again, from before what was scored already.
        del sequence.scores[span.position + 1 - (sequence.request.score_from or 0) :]
        sequence.scores.extend(describe(logits, targets, [top] * len(targets)))

    def _finish_score(self, sequence: Sequence) -> None:
        self._remove(sequence)
        now = time.monotonic()
        sequence.first_token = now
        self._outputs.append(
            StepOutput(
                sequence.request.id,
                logprobs=tuple(sequence.scores),
                finish=Finish.STOP,
                cached_tokens=sequence.cached,
                timings=sequence.timings(now),
            )
        )

    # Ends.

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request.id]
        if (adapter := sequence.request.adapter) is not None:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                del self._users[adapter]
        if sequence in self._unqueued:
            self._unqueued.remove(sequence)
        else:
            self.parts.scheduler.remove(sequence)
        self.parts.sampler.forget(sequence)
        if self.parts.speculator is not None:
            self.parts.speculator.forget(sequence)
        self._door.leave(sequence.request.id)

    def _fail(self, sequence: Sequence, error: ArgosyError) -> None:
        self._remove(sequence)
        self._outputs.append(StepOutput(sequence.request.id, finish=Finish.FAILED, error=error))

    def _shut(self, error: ArgosyError) -> None:
        """Takes no more commands, runs those that came before, and ends every sequence."""
        with self._wake:
            self._closed = True
        self._drain_commands()
        # Blocks and books may be in disorder after a fault, and nobody needs them any more.
        self._outputs.extend(
            StepOutput(request_id, finish=Finish.FAILED, error=error) for request_id in self._sequences
        )
        self._sequences.clear()
        self._unqueued.clear()
        self._users.clear()
        self.parts.masks.close()
        self._hand_out()

    def _hand_out(self) -> None:
        self.stats = self._picture()
        if self._outputs:
            outputs, self._outputs = self._outputs, []
            self._on_step(outputs)

    def _picture(self) -> EngineStats:
        scheduler = self.parts.scheduler
        running, waiting = self._adapters_at_work() if self._users else ((), ())
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._unqueued),
            waiting_tokens=scheduler.waiting_tokens + sum(sequence.pending for sequence in self._unqueued),
            kv_blocks_in_use=scheduler.blocks.in_use,
            kv_blocks_total=scheduler.blocks.total,
            adapters=len(self.parts.adapters),
            steps=self._steps,
            preemptions=scheduler.preemptions,
            running_adapters=running,
            waiting_adapters=waiting,
        )

    def _adapters_at_work(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Those of running sequences and those of waiting ones."""
        running = Counter(one.request.adapter for one in self.parts.scheduler.running if one.request.adapter)
        return tuple(sorted(running)), tuple(sorted(key for key, users in self._users.items() if users > running[key]))
