"""An engine that says exactly what a test tells it to, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from argosy_services.engine.base import (
    AdapterWeights,
    EngineInfo,
    EngineStats,
    Finish,
    Grammar,
    Request,
    StepCallback,
    StepOutput,
    Timings,
    TokenLogprobs,
)
from argosy_services.errors import ArgosyError, Reason, adapter_not_found
from argosy_services.leases import Lease

TIMINGS = Timings(queue_s=0.25, prefill_s=0.5, decode_s=0.75)


@dataclass(frozen=True)
class Script:
    """What one sequence says: `tokens`, `burst` of them a step, and `error` in place of the token at `fail_at`."""

    tokens: Sequence[int]
    burst: int = 1
    fail_at: int | None = None
    error: ArgosyError | None = None
    cached_tokens: int = 0


@dataclass
class _Sequence:
    request: Request
    script: Script
    said: int = 0


@dataclass
class ScriptedEngine:
    """Says for each request what `script` gives for it. While `going` is cleared, no step runs."""

    script: Callable[[Request], Script]
    info: EngineInfo
    max_running: int = 64
    step_s: float = 0.0
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    grammars: list[Grammar] = field(default_factory=list)
    callbacks: int = 0
    most_running: int = 0
    fault: BaseException | None = None

    def __post_init__(self) -> None:
        self.going = threading.Event()
        self.going.set()
        self._changed = threading.Condition()
        self._sequences: dict[str, _Sequence] = {}
        self._closed = False
        self._thread: threading.Thread | None = None
        self._on_step: StepCallback | None = None

    @property
    def running(self) -> set[str]:
        with self._changed:
            return set(self._sequences)

    def start(self, on_step: StepCallback) -> None:
        assert self._thread is None
        self._on_step = on_step
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.going.set()
        if self._thread is not None:
            self._thread.join()

    def submit(self, request: Request) -> None:
        with self._changed:
            if request.id in self._sequences:
                raise AssertionError(f"{request.id} is used twice")
            if len(self._sequences) >= self.max_running:
                raise ArgosyError(Reason.QUEUE_FULL, "too many", retry_after_s=1.0, limit=self.max_running)
            if request.adapter not in (None, "key-of-pirate"):
                raise adapter_not_found(str(request.adapter))
            self.submitted.append(request)
            self._sequences[request.id] = _Sequence(request, self.script(request))
            self.most_running = max(self.most_running, len(self._sequences))
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        with self._changed:
            if self._sequences.pop(request_id, None) is not None:
                self.cancelled.append(request_id)

    def check_grammar(self, grammar: Grammar) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.grammars.append(grammar)
        if "broken" in grammar.source:
            raise ArgosyError(Reason.INVALID_GRAMMAR, "cannot be used", field="elsewhere", detail="it is broken")

    def read_adapter(self, directory: Path) -> AdapterWeights:
        raise NotImplementedError

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        raise NotImplementedError

    def unload_adapter(self, key: str) -> Future[None]:
        raise NotImplementedError

    def stats(self) -> EngineStats:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as fault:  # a test looks at it
            self.fault = fault

    def _step(self) -> bool:
        with self._changed:
            while not self._sequences and not self._closed:
                self._changed.wait()
        self.going.wait()
        if self.step_s:
            time.sleep(self.step_s)
        with self._changed:
            closed = self._closed
            if closed:
                draining = ArgosyError(Reason.DRAINING, "shutting down", retry_after_s=1.0)
                outputs = [StepOutput(name, finish=Finish.FAILED, error=draining) for name in self._sequences]
                self._sequences.clear()
            else:
                outputs = [self._advance(sequence) for sequence in list(self._sequences.values())]
        if outputs and self._on_step is not None:
            self.callbacks += 1
            self._on_step(outputs)
        return not closed

    def _advance(self, sequence: _Sequence) -> StepOutput:
        output = self._score(sequence) if sequence.request.score_from is not None else self._say(sequence)
        if output.finish is not None:
            del self._sequences[sequence.request.id]
            if output.finish is not Finish.FAILED:
                return replace(output, timings=TIMINGS)
        return output

    def _say(self, sequence: _Sequence) -> StepOutput:
        request, script = sequence.request, sequence.script
        if script.fail_at is not None and sequence.said >= script.fail_at:
            return StepOutput(request.id, finish=Finish.FAILED, error=script.error)
        said: list[int] = []
        finish = None
        while finish is None and len(said) < script.burst:
            said.append(script.tokens[sequence.said])
            sequence.said += 1
            if said[-1] in request.stop_token_ids or sequence.said == len(script.tokens):
                finish = Finish.STOP
            if finish is None and sequence.said == request.max_tokens:
                finish = Finish.LENGTH
        logprobs = () if request.sampling.logprobs is None else tuple(map(logprob_of, said))
        return StepOutput(request.id, tuple(said), logprobs, finish, cached_tokens=script.cached_tokens)

    def _score(self, sequence: _Sequence) -> StepOutput:
        """The script's tokens are what greedy decoding would give; two positions a step."""
        request, start = sequence.request, sequence.request.score_from or 0
        targets = list(request.prompt[start:])
        chunk = slice(sequence.said, sequence.said + 2)
        sequence.said += 2
        entries = tuple(
            TokenLogprobs(token, -token / 1000, ((best, -0.5),))
            for token, best in zip(targets[chunk], sequence.script.tokens[chunk], strict=True)
        )
        finish = Finish.STOP if sequence.said >= len(targets) else None
        return StepOutput(request.id, logprobs=entries, finish=finish, cached_tokens=sequence.script.cached_tokens)


def logprob_of(token_id: int) -> TokenLogprobs:
    """What the engine reports for a token, so that a test can tell that the two belong together."""
    return TokenLogprobs(token_id, -token_id / 1000, ((token_id, -token_id / 1000), (0, -9.0)))


@dataclass
class ScriptedLeases:
    """One adapter, "pirate"; counts who holds it. While `coming` is set it is in no slot, and who wants it waits."""

    coming: bool = False
    held: int = 0
    given: int = 0
    revoke: Callable[[], None] | None = None

    def lease(
        self, name: str, on_revoke: Callable[[], None], sticky_key: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        return self._lease(name, on_revoke)

    @asynccontextmanager
    async def _lease(self, name: str, on_revoke: Callable[[], None]) -> AsyncIterator[Lease]:
        if name != "pirate":
            raise adapter_not_found(name)
        self.held += 1
        self.given += 1
        self.revoke = on_revoke
        try:
            if self.coming:
                await asyncio.get_running_loop().create_future()
            yield Lease(name="pirate", key="key-of-pirate", version="v1", base_model="smollm2-135m-instruct")
        finally:
            self.held -= 1
