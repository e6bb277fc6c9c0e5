"""An engine in a process of its own: sequences come in by handle, each one's outputs go back as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from argosy_services.engine.base import Engine, Finish, Request, StepOutput
from argosy_services.errors import ArgosyError, Reason

# The first token goes out at once; later ones at most so often, because a message costs more than a token.
_MIN_INTERVAL_S = 0.015


class EngineHost:
    """Shares an engine's outputs out among the streams that wait for them. Lives on one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inboxes: dict[str, _Inbox] = {}
        self._fault: ArgosyError | None = None

    def check_health(self) -> None:
        """Raises ENGINE_FAILED once the engine has ended by a fault."""
        if self._fault is not None:
            raise self._fault

    def start(self) -> None:
        """Starts the engine; its outputs go to the loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self.engine.start(self._on_step)

    async def run(self, request: Request) -> AsyncIterator[list[StepOutput]]:
        """The outputs of one sequence, in their order; those of steps that follow quickly come together.

        A refusal is an output as well: FAILED with its error. Closing the iterator frees the sequence.
        """
        inbox = _Inbox()
        try:
            self.engine.submit(request)
        except ArgosyError as error:
            self._look(error)
            yield [StepOutput(request.id, finish=Finish.FAILED, error=error)]
            return
        # In time: outputs are shared out by this thread, and not before it returns to the event loop.
        self._inboxes[request.id] = inbox
        try:
            while not inbox.finished:
                yield await inbox.take()
                if not inbox.finished:
                    await asyncio.sleep(_MIN_INTERVAL_S)
        finally:
            del self._inboxes[request.id]
            if not inbox.finished:
                self.engine.cancel(request.id)

    def _on_step(self, outputs: list[StepOutput]) -> None:
        """Runs on the engine's thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._distribute, outputs)

    def _distribute(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            self._look(output.error)
            inbox = self._inboxes.get(output.request_id)
            if inbox is not None:
                inbox.put(output)

    def _look(self, error: ArgosyError | None) -> None:
        if error is not None and error.reason is Reason.ENGINE_FAILED:
            self._fault = error


class _Inbox:
    """Outputs that wait for their reader."""

    def __init__(self) -> None:
        self._outputs: list[StepOutput] = []
        self._news = asyncio.Event()
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether the last output has been taken."""
        return self._ended and not self._outputs

    def put(self, output: StepOutput) -> None:
        self._outputs.append(output)
        self._ended = output.finish is not None
        self._news.set()

    async def take(self) -> list[StepOutput]:
        """Waits for news and returns everything that is there."""
        await self._news.wait()
        self._news.clear()
        outputs, self._outputs = self._outputs, []
        return outputs
