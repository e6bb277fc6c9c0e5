"""A gateway's links to engine replicas: sequences go out one by one, all that a replica has to say comes back on one
stream; see `engine_host`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from contextvars import Context
from typing import Any, Protocol

from argosy_services.cluster.remote_engine import ReplicaLost
from argosy_services.engine.base import Finish, Grammar, Request, StepOutput
from argosy_services.errors import ArgosyError


class EngineCalls(Protocol):
    """The calls that a gateway makes to engine replicas. Each raises ReplicaLost."""

    async def submit(self, request: Request, gateway: str) -> str | ArgosyError:
        """Gives a sequence to the replica that suits it; returns that replica, or why it refuses."""
        ...

    def link(self, replica: str, gateway: str) -> AsyncGenerator[list[StepOutput]]:
        """What a replica has to say to a gateway."""
        ...

    async def cancel(self, replica: str, request_id: str) -> None:
        """Frees a sequence in a replica."""
        ...

    def forget(self, request_id: str) -> str | None:
        """A sequence is over in this gateway; returns the replica that took it, if one did."""
        ...

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """What any replica says of a grammar."""
        ...


class LinkedEngines:
    """`remote_engine.EngineReplicas` over links. Lives on one event loop."""

    def __init__(self, calls: EngineCalls) -> None:
        self._calls = calls
        self._gateway = uuid.uuid4().hex
        self._readers: dict[str, _Reader] = {}
        self._links: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, request: Request, take: Callable[[StepOutput], None]) -> None:
        """Runs a sequence to its end; see `EngineReplicas`. Cancelling it frees the sequence."""
        reader = self._readers[request.id] = _Reader(take)
        try:
            placed = await self._calls.submit(request, self._gateway)
            if isinstance(placed, ArgosyError):
                reader.take(StepOutput(request.id, finish=Finish.FAILED, error=placed))
            else:
                self._follow(placed, request.id)
            await reader.end
        finally:
            del self._readers[request.id]
            replica = self._calls.forget(request.id)
            if replica is not None:
                self._links.get(replica, set()).discard(request.id)
                if not reader.end.done() or reader.end.cancelled():
                    self._do(self._cancel(replica, request.id))

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """Asks any replica."""
        return await self._calls.check_grammar(grammar)

    def _follow(self, replica: str, request_id: str) -> None:
        if replica not in self._links:
            self._links[replica] = set()
            self._do(self._read(replica))
        self._links[replica].add(request_id)

    async def _read(self, replica: str) -> None:
        """Reads a link for as long as there are sequences in its replica."""
        sequences = self._links[replica]
        lost = ReplicaLost("its link broke")
        try:
            while True:
                before = set(sequences)
                async with aclosing(self._calls.link(replica, self._gateway)) as link:
                    async for outputs in link:
                        self._distribute(replica, outputs)
                # It ended because the replica had none of ours. Those that came while it did are waited for once more.
                self._fail(before & sequences, ReplicaLost("its replica has dropped it"))
                if not sequences - before:
                    return
        except ReplicaLost as error:
            lost = error
        finally:
            del self._links[replica]
            self._fail(sequences, lost)

    def _distribute(self, replica: str, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if (reader := self._readers.get(output.request_id)) is not None:
                reader.take(output)
            elif output.finish is None:
                # It was given up before its replica had taken it.
                self._do(self._cancel(replica, output.request_id))

    def _fail(self, sequences: set[str], lost: ReplicaLost) -> None:
        for request_id in sequences:
            if (reader := self._readers.get(request_id)) is not None:
                reader.lose(lost)

    async def _cancel(self, replica: str, request_id: str) -> None:
        try:
            await self._calls.cancel(replica, request_id)
        except ReplicaLost:
            return  # And with it the sequence.

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        # In a context of its own: Ray Serve takes several streams that one call of a gateway opens for one.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Reader:
    """Who waits for a sequence."""

    def __init__(self, take: Callable[[StepOutput], None]) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take = take

    def take(self, output: StepOutput) -> None:
        """Hands an output on."""
        self._take(output)
        if output.finish is not None and not self.end.done():
            self.end.set_result(None)

    def lose(self, lost: ReplicaLost) -> None:
        """Nothing more will come."""
        if not self.end.done():
            self.end.set_exception(lost)
