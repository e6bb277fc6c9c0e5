"""Makes the calls of one area: the plan of `_call.py` carried out, once with threads and once with asyncio."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import grpc.aio

from argosy._call import CallPlan, Deadline, choose_timeout
from argosy._config import Config
from argosy.errors import ArgosyError

T = TypeVar("T")

# Stubs are typed by their generated .pyi files, whose base classes grpc does not make generic.
Rpc = Callable[..., Any]


class _Area:
    def __init__(self, config: Config, area: str) -> None:
        self._config = config
        self._area = area

    def plan(self, timeout: float | None, request_id: str | None) -> CallPlan:
        """The plan of one call."""
        return CallPlan(self._config, self._area, timeout=timeout, request_id=request_id)

    def deadline(self, timeout: float | None, default: float) -> Deadline:
        """The end of a method that makes several calls."""
        return Deadline(choose_timeout(timeout, self._config, default))


class Caller(_Area):
    """Calls that block their thread."""

    def __init__(self, config: Config, area: str, channel: grpc.Channel) -> None:
        super().__init__(config, area)
        self.channel = channel

    def unary(self, rpc: Rpc, request: Any, *, timeout: float | None, request_id: str | None) -> Any:
        """One request, one response. Raises ArgosyError."""
        plan = self.plan(timeout, request_id)
        plan.begin(request)
        try:
            return self._insist(rpc, request, plan)
        except ArgosyError as error:
            plan.finish(error)
            raise
        finally:
            plan.finish()

    def _insist(self, rpc: Rpc, request: Any, plan: CallPlan) -> Any:
        while True:
            seconds, metadata = plan.attempt()
            try:
                return rpc(request, timeout=seconds, metadata=metadata)
            except grpc.RpcError as failure:
                error = plan.to_error(failure)  # type: ignore[arg-type]
            wait = plan.retry_in(error)
            if wait is None:
                raise error
            time.sleep(wait)

    def pages(self, fetch: Callable[[str], Any], items: Callable[[Any], Sequence[T]]) -> Iterator[T]:
        """The items of all pages. `fetch` gets a page token and gives a response with a `next_page_token`."""
        token = ""
        while True:
            page = fetch(token)
            yield from items(page)
            token = page.next_page_token
            if not token:
                return


class AsyncCaller(_Area):
    """Calls that suspend their task."""

    def __init__(self, config: Config, area: str, channel: grpc.aio.Channel) -> None:
        super().__init__(config, area)
        self.channel = channel

    async def unary(self, rpc: Rpc, request: Any, *, timeout: float | None, request_id: str | None) -> Any:
        """One request, one response. Raises ArgosyError."""
        plan = self.plan(timeout, request_id)
        plan.begin(request)
        try:
            return await self._insist(rpc, request, plan)
        except ArgosyError as error:
            plan.finish(error)
            raise
        finally:
            plan.finish()

    async def _insist(self, rpc: Rpc, request: Any, plan: CallPlan) -> Any:
        while True:
            seconds, metadata = plan.attempt()
            try:
                return await rpc(request, timeout=seconds, metadata=metadata)
            except grpc.aio.AioRpcError as failure:
                error = plan.to_error(failure)
            wait = plan.retry_in(error)
            if wait is None:
                raise error
            await asyncio.sleep(wait)

    async def pages(self, fetch: Callable[[str], Any], items: Callable[[Any], Sequence[T]]) -> AsyncIterator[T]:
        """The items of all pages. `fetch` gets a page token and gives an awaitable response."""
        token = ""
        while True:
            page = await fetch(token)
            for item in items(page):
                yield item
            token = page.next_page_token
            if not token:
                return
