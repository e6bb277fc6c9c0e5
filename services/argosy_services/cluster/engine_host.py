"""An engine in a process of its own: sequences come in one by one, outputs go back to each gateway on one stream.

One stream for all of a gateway's sequences, because between processes a message costs more than a token: after a step
of 64 sequences one message travels instead of 64.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from argosy_services.engine.base import Engine, Request, StepOutput
from argosy_services.errors import ArgosyError, Reason

# What comes after an idle moment goes out at once; later outputs at most so often.
_MIN_INTERVAL_S = 0.003
# An idle link ends, because Ray Serve waits for it before it lets a replica go.
_IDLE_S = 3.0
# So long may a gateway take to read what its sequences bring; one that died never does.
_UNREAD_S = 5.0


class EngineHost:
    """Shares an engine's outputs out among gateways. Lives on one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outboxes: dict[str, _Outbox] = {}
        self._owners: dict[str, _Outbox] = {}
        self._fault: ArgosyError | None = None

    def check_health(self) -> None:
        """Raises ENGINE_FAILED once the engine has ended by a fault."""
        if self._fault is not None:
            raise self._fault

    def start(self) -> None:
        """Starts the engine; its outputs go to the loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self.engine.start(self._on_step)

    def submit(self, request: Request, gateway: str) -> None:
        """Takes a sequence whose outputs go to the link of a gateway. Raises what `Engine.submit` raises."""
        try:
            self.engine.submit(request)
        except ArgosyError as error:
            self._look(error)
            raise
        # In time: outputs are shared out by this thread, and not before it returns to the event loop.
        outbox = self._outboxes.setdefault(gateway, _Outbox())
        outbox.live.add(request.id)
        self._owners[request.id] = outbox
        if outbox.readers == 0:
            asyncio.get_running_loop().call_later(_UNREAD_S, self._drop_unread, gateway, outbox)

    def cancel(self, request_id: str) -> None:
        """Frees a sequence; no output follows. Unknown ids are ignored."""
        outbox = self._owners.pop(request_id, None)
        if outbox is not None:
            outbox.live.discard(request_id)
            self.engine.cancel(request_id)

    async def link(self, gateway: str) -> AsyncIterator[list[StepOutput]]:
        """All outputs of a gateway's sequences, in their order; those of steps that follow quickly come together.

        It ends by itself when the gateway has had no sequence here for a while. Closing it frees the sequences.
        """
        outbox = self._outboxes.setdefault(gateway, _Outbox())
        outbox.readers += 1
        try:
            while (outputs := await outbox.take(_IDLE_S)) or outbox.live:
                if outputs:
                    yield outputs
                    await asyncio.sleep(_MIN_INTERVAL_S)
        finally:
            outbox.readers -= 1
            if outbox.readers == 0:
                self._drop(gateway, outbox)

    def _drop_unread(self, gateway: str, outbox: _Outbox) -> None:
        if outbox.readers == 0:
            self._drop(gateway, outbox)

    def _drop(self, gateway: str, outbox: _Outbox) -> None:
        for request_id in list(outbox.live):
            self.cancel(request_id)
        if self._outboxes.get(gateway) is outbox:
            del self._outboxes[gateway]

    def _on_step(self, outputs: list[StepOutput]) -> None:
        """Runs on the engine's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._distribute, outputs)

    def _distribute(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            self._look(output.error)
            ended = output.finish is not None
            outbox = self._owners.pop(output.request_id, None) if ended else self._owners.get(output.request_id)
            if outbox is not None:
                if ended:
                    outbox.live.discard(output.request_id)
                outbox.put(output)

    def _look(self, error: ArgosyError | None) -> None:
        if error is not None and error.reason is Reason.ENGINE_FAILED:
            self._fault = error


class _Outbox:
    """What goes to one gateway."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.readers = 0
        self._outputs: list[StepOutput] = []
        self._news = asyncio.Event()

    def put(self, output: StepOutput) -> None:
        self._outputs.append(output)
        self._news.set()

    async def take(self, timeout_s: float) -> list[StepOutput]:
        """Waits for news and returns everything that is there; nothing after the timeout."""
        if not self._outputs:
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        outputs, self._outputs = self._outputs, []
        return outputs
