"""An engine in a process of its own: each gateway has one connection to it, for all of its sequences.

A gateway sends `Run` and `Cancel`; `Outputs` come back: all that a step brings for it in one message, because between
processes a message costs more than a token.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

import structlog

from argosy_services.cluster.messages import MessageRefusedError, Outputs, Run, ToEngine, ToGateway
from argosy_services.cluster.wire import Connection, Contact, listen
from argosy_services.engine.base import Engine, Finish, Request, StepOutput
from argosy_services.engine.failures import not_running
from argosy_services.errors import ArgosyError, Reason

log = structlog.get_logger("argosy.cluster")


class EngineHost:
    """Shares an engine's outputs out among gateways. Lives on one event loop."""

    def __init__(
        self, engine: Engine, acquire: Callable[[str], Awaitable[None]], release: Callable[[str], None]
    ) -> None:
        """`acquire` is awaited before a sequence that needs an adapter is given to the engine, `release` called when it
        has ended.
        """
        self.engine = engine
        self._acquire = acquire
        self._release = release
        # Of each sequence with an adapter which one it holds, and how many seconds it waited for it.
        self._held: dict[str, tuple[str, float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._outboxes: set[_Outbox] = set()
        self._owners: dict[str, _Outbox] = {}
        self._idle = asyncio.Event()
        self._loading: dict[str, asyncio.Task[None]] = {}

    def check_health(self) -> None:
        """Raises ENGINE_FAILED once the engine takes no more sequences. Asked of the engine itself: that one sequence
        failed is no reason to give up a replica and its GPU.
        """
        if not self.engine.healthy:
            raise not_running()

    async def start(self, host: str) -> Contact:
        """Starts the engine and takes gateways on a free port of `host`; returns where."""
        self._loop = asyncio.get_running_loop()
        self.engine.start(self._on_step)
        contact, self._server = await listen(host, self._work_for)
        return contact

    async def drain(self) -> None:
        """Waits until every sequence has ended, and then takes no more."""
        while self._owners:
            await self._idle.wait()
        if self._server is not None:
            self._server.close()
        for outbox in self._outboxes:
            outbox.close()

    async def _work_for(self, gateway: Connection[ToGateway, ToEngine]) -> None:
        """Does what a gateway asks for until its connection ends; then its sequences are freed."""
        outbox = _Outbox(gateway)
        self._outboxes.add(outbox)
        sending = asyncio.create_task(outbox.send())
        try:
            async with aclosing(gateway.messages()) as messages:
                async for message in messages:
                    if isinstance(message, Run):
                        self._take(message.request, outbox)
                    else:
                        self._cancel(message.request_id)
        finally:
            self._outboxes.discard(outbox)
            sending.cancel()
            for request_id in [name for name, owner in self._owners.items() if owner is outbox]:
                self._cancel(request_id)

    def _take(self, request: Request, outbox: _Outbox) -> None:
        self._owners[request.id] = outbox
        self._idle.clear()
        if request.adapter is None:
            self._submit(request)
        else:
            self._loading[request.id] = asyncio.create_task(self._load_and_submit(request, request.adapter))

    async def _load_and_submit(self, request: Request, adapter: str) -> None:
        since = time.monotonic()
        try:
            await self._acquire(adapter)
        except Exception as error:
            self._refuse(request, error)
        else:
            self._held[request.id] = adapter, time.monotonic() - since
            self._submit(request)
        finally:
            self._loading.pop(request.id, None)

    def _submit(self, request: Request) -> None:
        try:
            self.engine.submit(request)
        except Exception as error:
            self._refuse(request, error)

    def _refuse(self, request: Request, error: Exception) -> None:
        """Ends one sequence, whatever is wrong with it; the others of its gateway go on."""
        if not isinstance(error, ArgosyError):
            log.error("a sequence could not be taken", exc_info=error, sequence=request.id)
            error = ArgosyError(Reason.INTERNAL, "internal error; the log of the engine has the cause")
        self._distribute([StepOutput(request.id, finish=Finish.FAILED, error=error)])

    def _cancel(self, request_id: str) -> None:
        """Frees a sequence; no output follows. Unknown ids are ignored."""
        if self._end(request_id) is None:
            return
        if (loading := self._loading.pop(request_id, None)) is not None:
            loading.cancel()
        else:
            self.engine.cancel(request_id)

    def _end(self, request_id: str) -> _Outbox | None:
        """A sequence is over; returns whose it was."""
        outbox = self._owners.pop(request_id, None)
        if (held := self._held.pop(request_id, None)) is not None:
            self._release(held[0])
        if not self._owners:
            self._idle.set()
        return outbox

    def _on_step(self, outputs: list[StepOutput]) -> None:
        """Runs on the engine's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._distribute, outputs)

    def _distribute(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if output.timings is not None and (held := self._held.get(output.request_id)) is not None:
                output = replace(output, timings=replace(output.timings, adapter_s=held[1]))  # noqa: PLW2901
            over = output.finish is not None
            outbox = self._end(output.request_id) if over else self._owners.get(output.request_id)
            if outbox is not None:
                outbox.put(output)


class _Outbox:
    """What goes to one gateway: everything new at once, or what has gathered while the gateway was slow to read."""

    def __init__(self, gateway: Connection[ToGateway, ToEngine]) -> None:
        self._gateway = gateway
        self._outputs: list[StepOutput] = []
        self._news = asyncio.Event()

    def put(self, output: StepOutput) -> None:
        self._outputs.append(output)
        self._news.set()

    async def send(self) -> None:
        """Sends until the connection ends."""
        with suppress(OSError):  # The reading side sees that end as well, and acts on it.
            while True:
                await self._news.wait()
                self._flush()
                await self._gateway.ready()

    def close(self) -> None:
        """Ends the connection after everything that is there."""
        self._flush()
        self._gateway.close()

    def _flush(self) -> None:
        outputs, self._outputs = self._outputs, []
        self._news.clear()
        if outputs:
            try:
                self._gateway.send(Outputs(outputs))
            except MessageRefusedError as error:
                # It has its sequences go on elsewhere as soon as it sees the end; left waiting, it would not.
                log.error("a gateway was left: its outputs cannot be sent", outputs=len(outputs), cause=str(error))
                self._gateway.close()
