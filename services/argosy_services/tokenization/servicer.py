"""TokenizationService of the schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from argosy.api.tokenization.v1 import tokenization_service_pb2 as pb
from argosy_services.errors import invalid_field
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate
from argosy_services.tokenization import convert
from argosy_services.tokenization.service import TokenizationService
from argosy_services.tokenization.types import FileStart


class TokenizationServicer:
    """Reads requests, asks the service, writes responses."""

    SERVICE = "argosy.api.tokenization.v1.TokenizationService"

    def __init__(self, service: TokenizationService, gate: Gate, auth: Authenticator) -> None:
        self._service = service
        self.gate = gate
        self.auth = auth

    @unary(pb.EncodeResponse)
    async def Encode(self, request: pb.EncodeRequest, call: Call) -> pb.EncodeResponse:
        info = self._service.info(request.model)
        encodings = await self._service.encode(
            info.model,
            list(request.texts),
            add_special_tokens=not request.HasField("add_special_tokens") or request.add_special_tokens,
            byte_spans=request.return_byte_offsets,
            tokens=request.return_tokens,
            max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
            side=convert.read_side("truncation_side", request.truncation_side),
        )
        # A million tokens take long enough to hold up everything else on the event loop.
        return await asyncio.to_thread(convert.write_encodings, encodings, info.fingerprint)

    @unary(pb.DecodeResponse)
    async def Decode(self, request: pb.DecodeRequest, call: Call) -> pb.DecodeResponse:
        info = self._service.info(request.model)
        texts = await self._service.decode(
            info.model,
            [given.ids for given in request.inputs],
            skip_special_tokens=not request.HasField("skip_special_tokens") or request.skip_special_tokens,
        )
        return pb.DecodeResponse(texts=texts, tokenizer_fingerprint=info.fingerprint)

    @unary(pb.CountTokensResponse)
    async def CountTokens(self, request: pb.CountTokensRequest, call: Call) -> pb.CountTokensResponse:
        info = self._service.info(request.model)
        match request.WhichOneof("input"):
            case "texts":
                counts = await self._service.count(
                    info.model,
                    list(request.texts.texts),
                    add_special_tokens=not request.HasField("add_special_tokens") or request.add_special_tokens,
                )
            case "chat":
                text = await self._service.render(info.model, convert.read_chat("chat", request.chat))
                counts = await self._service.count(info.model, [text], add_special_tokens=False)
            case _:
                raise invalid_field("input", "is required", limit="texts or chat", value="neither")
        return pb.CountTokensResponse(counts=counts, tokenizer_fingerprint=info.fingerprint)

    @unary(pb.RenderChatResponse)
    async def RenderChat(self, request: pb.RenderChatRequest, call: Call) -> pb.RenderChatResponse:
        info = self._service.info(request.model)
        text = await self._service.render(info.model, convert.read_chat("chat", request.chat))
        response = pb.RenderChatResponse(text=text, tokenizer_fingerprint=info.fingerprint)
        if request.return_ids:
            (encoding,) = await self._service.encode(info.model, [text], add_special_tokens=False)
            response.ids.extend(encoding.ids)
        return response

    @unary(pb.GetTokenizerResponse)
    async def GetTokenizer(self, request: pb.GetTokenizerRequest, call: Call) -> pb.GetTokenizerResponse:
        return pb.GetTokenizerResponse(tokenizer=convert.write_tokenizer(self._service.info(request.model)))

    @stream(pb.StreamTokenizerFilesResponse)
    async def StreamTokenizerFiles(
        self, request: pb.StreamTokenizerFilesRequest, call: Call
    ) -> AsyncIterator[pb.StreamTokenizerFilesResponse]:
        async for part in self._service.files(request.model):
            if isinstance(part, FileStart):
                file = pb.TokenizerFile(name=part.name, size_bytes=part.size_bytes, sha256=part.sha256)
                yield pb.StreamTokenizerFilesResponse(file=file)
            else:
                yield pb.StreamTokenizerFilesResponse(chunk=part)
