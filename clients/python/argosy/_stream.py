"""Streams of events: keep-alives are skipped, a missing end is an error, and whoever stops reading cancels the call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

import grpc
import grpc.aio

from argosy._call import CallPlan

# Defined in the extension module, where type checkers do not see it.
_EOF = grpc.aio.EOF  # type: ignore[attr-defined]

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


class Reader(Protocol[E_co]):
    """Turns the messages of one stream into events; keeps what must be known at the end."""

    def read(self, message: Any) -> Iterable[E_co]:
        """The events in a message. None of them: a keep-alive, or an event that this version does not know."""
        ...

    def end(self) -> None:
        """The stream ended with OK. Raises ProtocolError where something was still to come."""
        ...


class _Stream(Generic[E]):
    """What both faces share: when a failure may be retried, and what is left to do."""

    def __init__(self, rpc: Callable[..., Any], request: Any, plan: CallPlan, reader: Reader[E]) -> None:
        self._rpc = rpc
        self._request = request
        self._plan = plan
        self._reader = reader
        self._began = False
        self._events: Iterator[E] = iter(())
        self._call: Any = None
        plan.begin(request)
        self._start()

    @property
    def request_id(self) -> str:
        """Finds the call in the server's log."""
        return self._plan.request_id

    def _start(self) -> None:
        timeout, metadata = self._plan.attempt()
        self._call = self._rpc(self._request, timeout=timeout, metadata=metadata)

    def _next_event(self) -> E | None:
        """The next event of the last message; None where another message must be read."""
        event = next(self._events, None)
        self._began = self._began or event is not None
        return event

    def _read(self, message: Any) -> None:
        self._events = iter(self._reader.read(message))

    def _restart(self) -> None:
        if self._call is not None:  # else it was closed meanwhile
            self._start()

    def _end(self) -> None:
        self._cancel()
        self._reader.end()

    def _wait_after(self, status: Any) -> float:
        """Seconds until the next attempt; raises where there is none."""
        error = self._plan.to_error(status)
        wait = None if self._began else self._plan.retry_in(error)
        if wait is None:
            self._plan.finish(error)
            self._cancel()
            raise error from None
        return wait

    def _cancel(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
            self._plan.finish()

    def __del__(self) -> None:
        # A constructor that failed leaves no call behind.
        if getattr(self, "_call", None) is not None:
            self._cancel()


class Stream(_Stream[E], Iterator[E]):
    """An iterator of events. Leaving its `with` block, closing or dropping it cancels the call on the server."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        while (call := self._call) is not None:
            try:
                if (event := self._next_event()) is not None:
                    return event
                message = next(call, None)
                if message is None:
                    self._end()
                else:
                    self._read(message)
            except grpc.RpcError as failure:
                if self._call is not None:
                    time.sleep(self._wait_after(failure))
                    self._restart()
            except BaseException:
                self._cancel()
                raise
        raise StopIteration

    def close(self) -> None:
        """Cancels the call unless it has ended. Iterating then ends; calling it again does nothing."""
        self._cancel()


class AsyncStream(_Stream[E], AsyncIterator[E]):
    """`Stream` for asyncio: `async with` and `async for`. Make and use it in a running event loop."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        while (call := self._call) is not None:
            try:
                if (event := self._next_event()) is not None:
                    return event
                message = await self._next_message(call)
                if message is _EOF:
                    self._end()
                else:
                    self._read(message)
            except grpc.aio.AioRpcError as failure:
                if self._call is not None:
                    await asyncio.sleep(self._wait_after(failure))
                    self._restart()
            except BaseException:
                self._cancel()
                raise
        raise StopAsyncIteration

    async def _next_message(self, call: Any) -> Any:
        try:
            return await call.read()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # grpc.aio raises this as well where the server, a proxy or our own close() ended the call.
            raise grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            ) from None

    async def close(self) -> None:
        """Cancels the call unless it has ended. Iterating then ends; calling it again does nothing."""
        self._cancel()
