"""The client for asyncio."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import grpc.aio

from argosy import _health
from argosy._call import Deadline
from argosy._caller import AsyncCaller
from argosy._channel import open_aio_channel
from argosy._config import RetryPolicy, Tls, make_config
from argosy._health import AREAS, Health
from argosy.adapters import AsyncAdaptersClient
from argosy.agents import AsyncAgentsClient
from argosy.embeddings import AsyncEmbeddingsClient
from argosy.errors import DeadlineExceededError, NotFoundError, UnavailableError
from argosy.generation import AsyncGenerationClient
from argosy.tokenization import AsyncTokenizationClient

_DEFAULT_RETRY = RetryPolicy()


class AsyncClient:
    """`Client` for asyncio, with the same arguments, areas and methods.

    It may be made anywhere; its first use binds it to the event loop that runs then. Streams are not awaited:
    `async for text in client.generation.stream("Hello").text(): ...`
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls = False,
        timeout: float | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        trace: bool = False,
    ) -> None:
        self._config = make_config(address, api_key=api_key, tls=tls, timeout=timeout, retry=retry, trace=trace)

    @property
    def address(self) -> str:
        """Where calls go."""
        return self._config.address

    @cached_property
    def tokenization(self) -> AsyncTokenizationClient:
        """Text to token ids and back."""
        return AsyncTokenizationClient(self._caller("tokenization"))

    @cached_property
    def generation(self) -> AsyncGenerationClient:
        """Generates and scores text."""
        return AsyncGenerationClient(self._caller("generation"))

    @cached_property
    def embeddings(self) -> AsyncEmbeddingsClient:
        """Turns texts into vectors."""
        return AsyncEmbeddingsClient(self._caller("embeddings"))

    @cached_property
    def adapters(self) -> AsyncAdaptersClient:
        """Loads and unloads LoRA adapters."""
        return AsyncAdaptersClient(self._caller("adapters"))

    @cached_property
    def agents(self) -> AsyncAgentsClient:
        """Runs agents."""
        return AsyncAgentsClient(self._caller("agents"))

    async def health(self, area: str, *, timeout: float = _health.TIMEOUT) -> Health:
        """What an area's service says about itself."""
        caller = self._caller(_health.check_area(area))
        check = self._channel.unary_unary(_health.METHOD, _health.serialize, _health.deserialize)
        try:
            return await caller.unary(check, area, timeout=timeout, request_id=None)
        except NotFoundError:
            return Health.NOT_FOUND

    async def wait_until_ready(self, timeout: float = 60.0, *, areas: Sequence[str] = AREAS) -> None:
        """Returns once every area serves. Raises DeadlineExceededError, which says what did not come."""
        deadline = Deadline(timeout)
        for area in areas:
            last = None
            while (seen := await self._health_or_error(area, deadline)) is not Health.SERVING:
                last = _health.more_telling(last, seen)
                if deadline.remaining() == 0:
                    raise _health.not_ready(self.address, area, last, timeout)
                await asyncio.sleep(_health.POLL_SECONDS)

    async def _health_or_error(
        self, area: str, deadline: Deadline
    ) -> Health | UnavailableError | DeadlineExceededError:
        try:
            return await self.health(area, timeout=min(_health.TIMEOUT, deadline.timeout))
        except (UnavailableError, DeadlineExceededError) as error:
            return error

    async def close(self) -> None:
        """Closes the connection; running calls end."""
        if "_channel" in self.__dict__:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return open_aio_channel(self._config)

    def _caller(self, area: str) -> AsyncCaller:
        return AsyncCaller(self._config, area, self._channel)
