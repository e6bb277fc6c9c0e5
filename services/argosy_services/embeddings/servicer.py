"""EmbeddingsService of the schema."""

from __future__ import annotations

import asyncio

from argosy.api.embeddings.v1 import embeddings_service_pb2 as pb
from argosy_services.embeddings import convert
from argosy_services.embeddings.service import EmbeddingsService
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import unary
from argosy_services.rpc.gate import Gate


class EmbeddingsServicer:
    """Reads requests, asks the service, writes responses."""

    SERVICE = "argosy.api.embeddings.v1.EmbeddingsService"

    def __init__(self, service: EmbeddingsService, gate: Gate, auth: Authenticator) -> None:
        self._service = service
        self.gate = gate
        self.auth = auth

    @unary(pb.EmbedResponse)
    async def Embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        packed = convert.reads_packed("format", request.format)
        embeddings = await self._service.embed(
            list(request.texts),
            model=request.model,
            normalize=request.normalize if request.HasField("normalize") else None,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
            truncate=not request.HasField("truncate") or request.truncate,
            tokenizer_fingerprint=request.tokenizer_fingerprint,
            adapter=request.adapter,
            adapter_sticky_key=request.adapter_sticky_key,
            tenant=call.tenant,
        )
        # A million floats take long enough to hold up everything else on the event loop.
        return await asyncio.to_thread(convert.write_embeddings, embeddings, packed=packed)

    @unary(pb.GetModelResponse)
    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=convert.write_model(self._service.info(request.name)))
