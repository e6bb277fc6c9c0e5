"""Engine replicas seen from a gateway: one runner of sequences that outlives any of them.

A sequence whose replica dies goes on in another one from the tokens that have come so far. Greedy decoding depends on
nothing but tokens, and drawing on nothing but the seed and the position (`torch_engine.sampler.uniform`), so the answer
is the one that an undisturbed run gives.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import replace
from typing import Protocol

import structlog

from argosy_services.engine.base import EngineInfo, Finish, Grammar, Request, StepCallback, StepOutput, Timings
from argosy_services.errors import ArgosyError, Reason

log = structlog.get_logger("argosy.cluster")

# So often in a row may a sequence lose its replica without a token in between.
_MAX_FRUITLESS = 5
_PAUSE_S = 0.05


class ReplicaLost(Exception):  # noqa: N818 - it ends an attempt, not the sequence
    """The replica that ran a sequence is gone."""


class EngineReplicas(Protocol):
    """The replicas of an engine deployment; each call goes to the one that suits it best."""

    async def run(self, request: Request, take: Callable[[StepOutput], None]) -> None:
        """Runs a sequence to its end and gives `take` its outputs as they come; a refusal is one as well: FAILED with
        its error. Cancelling it frees the sequence. Raises ReplicaLost.
        """
        ...

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """What is wrong with a grammar. Raises ReplicaLost."""
        ...


class RemoteEngine:
    """`engine.base.SequenceRunner` over engine replicas. Lives on the event loop that it is started on."""

    def __init__(self, info: EngineInfo, replicas: EngineReplicas) -> None:
        self.info = info
        self._replicas = replicas
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_step: StepCallback | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._fresh: list[StepOutput] = []

    def start(self, on_step: StepCallback) -> None:
        """Takes sequences from now on; call it on the event loop that shall do the work."""
        self._loop = asyncio.get_running_loop()
        self._on_step = on_step

    def close(self) -> None:
        """Ends every sequence with DRAINING. For any thread."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(self._end_all)

    def submit(self, request: Request) -> None:
        """Takes a sequence, on the event loop's thread. Replicas that refuse it end it with FAILED and their error."""
        if self._loop is None:
            raise ArgosyError(Reason.STARTING, "the gateway has not been started; retry soon", retry_after_s=1.0)
        # Each in a context of its own: Ray Serve mixes up what several of them ask for under one call's id.
        task = self._loop.create_task(self._run(request), name=f"sequence {request.id}", context=Context())
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(request.id, None))

    def cancel(self, request_id: str) -> None:
        """Has the replica free a sequence, on the event loop's thread; no output follows."""
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()
            self._fresh = [output for output in self._fresh if output.request_id != request_id]

    def check_grammar(self, grammar: Grammar) -> None:
        """Asks a replica. Raises INVALID_GRAMMAR, ENGINE_FAILED or STARTING. Not for the event loop's thread."""
        loop = self._loop
        if loop is None:
            raise ArgosyError(Reason.STARTING, "the gateway has not been started; retry soon", retry_after_s=1.0)
        asking = asyncio.run_coroutine_threadsafe(_insist(lambda: self._replicas.check_grammar(grammar)), loop)
        if (error := asking.result()) is not None:
            raise error

    async def _run(self, request: Request) -> None:
        journal = _Journal(request)
        try:
            while not journal.finished:
                await self._attempt(journal)
        except asyncio.CancelledError:
            raise
        except ArgosyError as error:
            self._hand_out(StepOutput(request.id, finish=Finish.FAILED, error=error))
        except Exception as fault:
            log.error("a sequence failed in the gateway", exc_info=fault, sequence=request.id)
            self._hand_out(StepOutput(request.id, finish=Finish.FAILED, error=engines_lost()))

    async def _attempt(self, journal: _Journal) -> None:
        """Follows a sequence in one replica, to its end or to the replica's."""
        try:
            await self._replicas.run(journal.rest(), lambda output: self._hand_out(journal.note(output)))
        except ReplicaLost as lost:
            log.warning("engine replica lost", sequence=journal.request.id, tokens=len(journal.tokens), cause=str(lost))
        if not journal.finished:
            journal.lost()
            await asyncio.sleep(_PAUSE_S)

    def _hand_out(self, output: StepOutput) -> None:
        """What comes in one turn of the event loop, over all sequences, is handed out as one step."""
        if not self._fresh:
            asyncio.get_running_loop().call_soon(self._flush)
        self._fresh.append(output)

    def _flush(self) -> None:
        outputs, self._fresh = self._fresh, []
        if outputs and self._on_step is not None:
            self._on_step(outputs)

    def _end_all(self) -> None:
        error = ArgosyError(Reason.DRAINING, "the server is shutting down; retry on another one", retry_after_s=1.0)
        for request_id in list(self._tasks):
            self.cancel(request_id)
            self._hand_out(StepOutput(request_id, finish=Finish.FAILED, error=error))


class _Journal:
    """What has come of one sequence, over all replicas that ran it."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.finished = False
        self._fruitless = 0
        self._attempts = 0
        self._began = time.monotonic()
        self._first: tuple[float, Timings] | None = None
        self._cached = 0

    def rest(self) -> Request:
        """What is still to be run. A name for each attempt: a lost replica may still hold the one before, and another
        gateway run a sequence of the same name.
        """
        self._attempts += 1
        timeout_s = self.request.timeout_s
        if timeout_s is not None:
            timeout_s = max(0.0, timeout_s - (time.monotonic() - self._began))
        name = f"{self.request.id}~{uuid.uuid4().hex}"
        return replace(self.request, id=name, generated=tuple(self.tokens), timeout_s=timeout_s)

    def note(self, output: StepOutput) -> StepOutput:
        """Takes note of an output and returns it as one run would have given it."""
        self.tokens += output.token_ids
        self.finished = output.finish is not None
        if output.token_ids:
            self._fruitless = 0
        timings = output.timings
        if self._attempts == 1:
            self._cached = output.cached_tokens
            if timings is not None and self._first is None:
                self._first = (time.monotonic(), timings)
        elif timings is not None and self._first is not None:
            since, first = self._first
            timings = replace(first, decode_s=time.monotonic() - since) if self.finished else None
        return replace(output, request_id=self.request.id, cached_tokens=self._cached, timings=timings)

    def lost(self) -> None:
        """Raises ENGINE_FAILED once no replica gets on with the sequence."""
        self._fruitless += 1
        if self._fruitless >= _MAX_FRUITLESS:
            raise engines_lost()


async def _insist(ask: Callable[[], Awaitable[ArgosyError | None]]) -> ArgosyError | None:
    for _ in range(_MAX_FRUITLESS):
        try:
            return await ask()
        except ReplicaLost:
            await asyncio.sleep(_PAUSE_S)
    return engines_lost()


def engines_lost() -> ArgosyError:
    """No engine replica could be kept at work."""
    return ArgosyError(
        Reason.ENGINE_FAILED,
        "the engine replicas of this model keep failing; their logs have the cause",
        retry_after_s=2.0,
    )
