"""A gateway's links to engine replicas: one connection to each, for all of its sequences; see `engine_host`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from contextvars import Context
from dataclasses import replace
from typing import Any, Protocol

import structlog

from argosy_services.cluster.messages import Cancel, MessageRefusedError, Run, ToEngine, ToGateway
from argosy_services.cluster.placement import ReplicaView, rank
from argosy_services.cluster.remote_engine import ReplicaLost
from argosy_services.cluster.roster import Roster
from argosy_services.cluster.wire import Connection, Contact, connect
from argosy_services.engine.base import Grammar, Request, StepOutput
from argosy_services.errors import ArgosyError

log = structlog.get_logger("argosy.cluster")

# So long is a replica left alone that could not be reached or understood. Ray Serve needs a moment to notice that one
# is gone.
_AVOIDED_S = 1.0
_PAUSE_S = 0.05


class AnyEngine(Protocol):
    """Calls that any engine replica may answer. Each raises ReplicaLost."""

    async def wake(self) -> None:
        """Waits until there is a replica; where none is, one is started."""
        ...

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """What is wrong with a grammar."""
        ...


class LinkedEngines:
    """`remote_engine.EngineReplicas` over links. Lives on one event loop."""

    def __init__(self, roster: Roster, engine: AnyEngine) -> None:
        self._roster = roster
        self._engine = engine
        self._links: dict[str, _Link] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._avoided: dict[str, float] = {}

    async def run(self, request: Request, take: Callable[[StepOutput], None]) -> None:
        """Runs a sequence to its end; see `EngineReplicas`. Cancelling it frees the sequence."""
        while (link := self._link(request)) is None:
            await self._prepare(request)
        await link.run(request, take)

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """Asks any replica."""
        return await self._engine.check_grammar(grammar)

    async def close(self) -> None:
        """Ends the links; sequences that still run over them are lost."""
        tasks = [*self._opening.values(), *self._following]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _best(self, request: Request) -> str | None:
        now = time.monotonic()
        views = {
            replica: self._view(replica, member.view)
            for replica, member in self._roster.members.items()
            if self._avoided.get(replica, now) <= now
        }
        return next(iter(rank(views, request)), None)

    def _view(self, replica: str, reported: ReplicaView) -> ReplicaView:
        # What a replica reports may be half a second old; what this process has sent there since is known at once.
        link = self._links.get(replica)
        return reported if link is None else replace(reported, sequences=max(reported.sequences, link.sequences))

    def _link(self, request: Request) -> _Link | None:
        best = self._best(request)
        return None if best is None else self._links.get(best)

    async def _prepare(self, request: Request) -> None:
        """Sees to it that the replica which suits a sequence can be reached, or is known not to be."""
        best = self._best(request)
        if best is None:
            await self._find()
            return
        if best not in self._opening:
            self._opening[best] = self._do(self._open(best, self._roster.members[best].contact))
        # Others wait for it as well: it goes on when this one is cancelled.
        await asyncio.shield(self._opening[best])

    async def _find(self) -> None:
        try:
            await self._engine.wake()
        except ReplicaLost as lost:
            log.warning("no engine replica answers", cause=str(lost))
        await asyncio.sleep(_PAUSE_S)

    async def _open(self, replica: str, contact: Contact) -> None:
        try:
            link = self._links[replica] = _Link(await connect(contact))
        except OSError as error:
            self._avoid(replica, error)
        else:
            self._avoided.pop(replica, None)
            task = self._do(self._follow(replica, link))
            self._following.add(task)
            task.add_done_callback(self._following.discard)
        finally:
            del self._opening[replica]

    async def _follow(self, replica: str, link: _Link) -> None:
        try:
            await link.follow()
        except MessageRefusedError as error:
            self._avoid(replica, error)
        finally:
            del self._links[replica]
            link.close()

    def _avoid(self, replica: str, error: Exception) -> None:
        log.warning("an engine replica cannot be reached or understood", replica=replica, cause=str(error))
        self._avoided[replica] = time.monotonic() + _AVOIDED_S

    @staticmethod
    def _do(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own: a link is not part of the call that happens to need it first.
        return asyncio.get_running_loop().create_task(work, context=Context())


class _Link:
    """One replica's connection and the sequences that it runs for this gateway."""

    def __init__(self, connection: Connection[ToEngine, ToGateway]) -> None:
        self._connection = connection
        self._readers: dict[str, _Reader] = {}

    @property
    def sequences(self) -> int:
        """How many sequences of this gateway the replica runs."""
        return len(self._readers)

    async def run(self, request: Request, take: Callable[[StepOutput], None]) -> None:
        """Has the replica run a sequence; see `LinkedEngines.run`."""
        reader = self._readers[request.id] = _Reader(take)
        try:
            self._connection.send(Run(request))
            await reader.end
        finally:
            del self._readers[request.id]
            if not reader.finished:
                self._connection.send(Cancel(request.id))

    async def follow(self) -> None:
        """Hands out what the replica has to say, until the connection ends."""
        async with aclosing(self._connection.messages()) as messages:
            async for message in messages:
                for output in message.outputs:
                    if (reader := self._readers.get(output.request_id)) is not None:
                        reader.take(output)

    def close(self) -> None:
        """Its sequences are lost."""
        self._connection.close()
        for reader in self._readers.values():
            reader.lose()


class _Reader:
    """Who waits for a sequence."""

    def __init__(self, take: Callable[[StepOutput], None]) -> None:
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finished = False
        self._take = take

    def take(self, output: StepOutput) -> None:
        """Hands an output on."""
        self._take(output)
        self.finished = output.finish is not None
        if self.finished and not self.end.done():
            self.end.set_result(None)

    def lose(self) -> None:
        """Nothing more will come."""
        if not self.end.done():
            self.end.set_exception(ReplicaLost("its link broke"))
