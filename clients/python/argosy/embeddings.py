"""Turns texts into vectors."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

from collections.abc import Sequence

from argosy._caller import AsyncCaller, Caller
from argosy._convert import embeddings as convert
from argosy.api.embeddings.v1 import embeddings_service_pb2 as rpc
from argosy.api.embeddings.v1.embeddings_service_pb2_grpc import EmbeddingsServiceStub
from argosy.types.embeddings import EmbeddingModel, Embeddings


class EmbeddingsClient:
    """Embeddings, as `client.embeddings`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = EmbeddingsServiceStub(caller.channel)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
        packed: bool = True,
        tokenizer_fingerprint: str = "",
        adapter: str = "",
        adapter_sticky_key: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Embeddings:
        """One vector for each text; a lone text counts as one.

        `dimensions` keeps only that many first dimensions. `truncate=False` makes a text that is too long an error.
        `packed=False` sends each float as its own field, which is slower and means the same. `adapter` names an adapter
        of the model, a version of one, or an alias; with a sticky key an alias means the same version each time.
        """
        request = convert.embed_request(
            texts,
            model=model,
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
            packed=packed,
            tokenizer_fingerprint=tokenizer_fingerprint,
            adapter=adapter,
            adapter_sticky_key=adapter_sticky_key,
        )
        response = self._caller.unary(self._stub.Embed, request, timeout=timeout, request_id=request_id)
        return convert.embeddings(response, len(request.texts))

    def get_model(
        self, name: str = "", *, timeout: float | None = None, request_id: str | None = None
    ) -> EmbeddingModel:
        """One served model; the default one where no name is given. Raises ModelNotFoundError."""
        request = rpc.GetModelRequest(name=name)
        response = self._caller.unary(self._stub.GetModel, request, timeout=timeout, request_id=request_id)
        return convert.model(response.model)


class AsyncEmbeddingsClient:
    """Embeddings for asyncio; each method does what its namesake in `EmbeddingsClient` does."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self._stub = EmbeddingsServiceStub(caller.channel)

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool | None = None,
        packed: bool = True,
        tokenizer_fingerprint: str = "",
        adapter: str = "",
        adapter_sticky_key: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Embeddings:
        """See `EmbeddingsClient.embed`."""
        request = convert.embed_request(
            texts,
            model=model,
            normalize=normalize,
            dimensions=dimensions,
            truncate=truncate,
            packed=packed,
            tokenizer_fingerprint=tokenizer_fingerprint,
            adapter=adapter,
            adapter_sticky_key=adapter_sticky_key,
        )
        response = await self._caller.unary(self._stub.Embed, request, timeout=timeout, request_id=request_id)
        return convert.embeddings(response, len(request.texts))

    async def get_model(
        self, name: str = "", *, timeout: float | None = None, request_id: str | None = None
    ) -> EmbeddingModel:
        """See `EmbeddingsClient.get_model`."""
        request = rpc.GetModelRequest(name=name)
        response = await self._caller.unary(self._stub.GetModel, request, timeout=timeout, request_id=request_id)
        return convert.model(response.model)
