"""Generates and scores text."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Unpack

from argosy._call import CallPlan
from argosy._caller import AsyncCaller, Caller
from argosy._convert import generation as convert
from argosy._convert.explanation import explanation
from argosy._stream import AsyncStream, Stream
from argosy.api.generation.v1 import generation_service_pb2 as rpc
from argosy.api.generation.v1.generation_service_pb2_grpc import GenerationServiceStub
from argosy.types.common import Prompt, TextOrTokens
from argosy.types.explanation import Explanation
from argosy.types.generation import Delta, GenerateOptions, Generation, Model, Scoring, TextEvent


class TextStream(Stream[TextEvent]):
    """The events of an answer as it is written. Closing or dropping it ends the work on the server."""

    _reader: convert.TextReader

    def __init__(self, rpc: Any, request: Any, plan: CallPlan) -> None:
        super().__init__(rpc, request, plan, convert.TextReader())

    def text(self, index: int = 0) -> Iterator[str]:
        """The pieces of text of one choice, none of them empty."""
        return (event.text for event in self if isinstance(event, Delta) and event.index == index and event.text)

    @property
    def final(self) -> Generation:
        """The whole answer. Raises RuntimeError before the stream's end; see `result`."""
        return _final(self._reader)

    def result(self) -> Generation:
        """Reads on to the end and gives the whole answer."""
        for _ in self:
            pass
        return self.final


class AsyncTextStream(AsyncStream[TextEvent]):
    """`TextStream` for asyncio."""

    _reader: convert.TextReader

    def __init__(self, rpc: Any, request: Any, plan: CallPlan) -> None:
        super().__init__(rpc, request, plan, convert.TextReader())

    def text(self, index: int = 0) -> AsyncIterator[str]:
        """The pieces of text of one choice, none of them empty."""
        return (event.text async for event in self if isinstance(event, Delta) and event.index == index and event.text)

    @property
    def final(self) -> Generation:
        """The whole answer. Raises RuntimeError before the stream's end; see `result`."""
        return _final(self._reader)

    async def result(self) -> Generation:
        """Reads on to the end and gives the whole answer."""
        async for _ in self:
            pass
        return self.final


def _final(reader: convert.TextReader) -> Generation:
    if reader.final is None:
        raise RuntimeError("the answer is not complete: read the stream to its end first")
    return reader.final


class GenerationClient:
    """Generation, as `client.generation`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = GenerationServiceStub(caller.channel)

    def generate(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Generates and answers once, when everything is finished.

        `prompt` is a text, a conversation (`[{"role": "user", "content": "Hello"}]`) or token ids. Options that are
        not given take the server's defaults; `json_schema`, `regex`, `lark` or `choice` gives the answer its form.
        """
        request = rpc.GenerateRequest(spec=convert.spec(prompt, options))
        response = self._caller.unary(self._stub.Generate, request, timeout=timeout, request_id=request_id)
        return convert.generation(response)

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """Generates and gives text as it comes: `for text in client.generation.stream("Hello").text(): ...`"""
        request = rpc.StreamGenerateRequest(spec=convert.spec(prompt, options), batch_events=True)
        return TextStream(self._stub.StreamGenerate, request, self._caller.plan(timeout, request_id))

    def score(
        self,
        items: Sequence[tuple[TextOrTokens, TextOrTokens]],
        *,
        model: str = "",
        adapter: str = "",
        tokenizer_fingerprint: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Scoring:
        """Log-probabilities of continuations: each item is a context and what follows it, as text or token ids."""
        request = convert.score_request(
            items,
            model=model,
            adapter=adapter,
            tokenizer_fingerprint=tokenizer_fingerprint,
            priority=priority,
            cache_salt=cache_salt,
        )
        return convert.scoring(self._caller.unary(self._stub.Score, request, timeout=timeout, request_id=request_id))

    def list_models(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> Iterator[Model]:
        """The served models, ordered by name; pages are fetched as they are needed, each within `timeout`."""

        def fetch(token: str) -> rpc.ListModelsResponse:
            request = rpc.ListModelsRequest(page_size=page_size, page_token=token)
            return self._caller.unary(self._stub.ListModels, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.model(model) for model in page.models])

    def get_model(self, name: str = "", *, timeout: float | None = None, request_id: str | None = None) -> Model:
        """One served model; the default one where no name is given. Raises ModelNotFoundError."""
        request = rpc.GetModelRequest(name=name)
        response = self._caller.unary(self._stub.GetModel, request, timeout=timeout, request_id=request_id)
        return convert.model(response.model)

    def explain(self, of_request: str, *, timeout: float | None = None, request_id: str | None = None) -> Explanation:
        """Where the time of a request went and what it waited for: of one that runs, or ran lately, by its id.

        Raises RequestNotFoundError. `request_id` is that of this call itself.
        """
        response = self._caller.unary(
            self._stub.Explain, rpc.ExplainRequest(request_id=of_request), timeout=timeout, request_id=request_id
        )
        return explanation(response.explanation)


class AsyncGenerationClient:
    """Generation for asyncio; each method does what its namesake in `GenerationClient` does."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self._stub = GenerationServiceStub(caller.channel)

    async def generate(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """See `GenerationClient.generate`."""
        request = rpc.GenerateRequest(spec=convert.spec(prompt, options))
        response = await self._caller.unary(self._stub.Generate, request, timeout=timeout, request_id=request_id)
        return convert.generation(response)

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """See `GenerationClient.stream`; not awaited: `async for text in client.generation.stream("Hello").text()`."""
        request = rpc.StreamGenerateRequest(spec=convert.spec(prompt, options), batch_events=True)
        return AsyncTextStream(self._stub.StreamGenerate, request, self._caller.plan(timeout, request_id))

    async def score(
        self,
        items: Sequence[tuple[TextOrTokens, TextOrTokens]],
        *,
        model: str = "",
        adapter: str = "",
        tokenizer_fingerprint: str = "",
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Scoring:
        """See `GenerationClient.score`."""
        request = convert.score_request(
            items,
            model=model,
            adapter=adapter,
            tokenizer_fingerprint=tokenizer_fingerprint,
            priority=priority,
            cache_salt=cache_salt,
        )
        response = await self._caller.unary(self._stub.Score, request, timeout=timeout, request_id=request_id)
        return convert.scoring(response)

    def list_models(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[Model]:
        """See `GenerationClient.list_models`."""

        async def fetch(token: str) -> rpc.ListModelsResponse:
            request = rpc.ListModelsRequest(page_size=page_size, page_token=token)
            return await self._caller.unary(self._stub.ListModels, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.model(model) for model in page.models])

    async def get_model(self, name: str = "", *, timeout: float | None = None, request_id: str | None = None) -> Model:
        """See `GenerationClient.get_model`."""
        request = rpc.GetModelRequest(name=name)
        response = await self._caller.unary(self._stub.GetModel, request, timeout=timeout, request_id=request_id)
        return convert.model(response.model)

    async def explain(
        self, of_request: str, *, timeout: float | None = None, request_id: str | None = None
    ) -> Explanation:
        """See `GenerationClient.explain`."""
        response = await self._caller.unary(
            self._stub.Explain, rpc.ExplainRequest(request_id=of_request), timeout=timeout, request_id=request_id
        )
        return explanation(response.explanation)
