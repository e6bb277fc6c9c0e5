"""Text to token ids and back, exactly as the served models do it."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from argosy._caller import AsyncCaller, Caller
from argosy._convert import tokenization as convert
from argosy._files import TokenizerDownload
from argosy._stream import AsyncStream, Stream
from argosy.api.tokenization.v1 import tokenization_service_pb2 as rpc
from argosy.api.tokenization.v1.tokenization_service_pb2_grpc import TokenizationServiceStub
from argosy.types.common import Message, Tool
from argosy.types.tokenization import Encoding, RenderedChat, Tokenizer


class TokenizationClient:
    """Tokenization, as `client.tokenization`. `model` names whose tokenizer is used; empty: the default model's."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = TokenizationServiceStub(caller.channel)

    def encode(
        self,
        text: str,
        *,
        model: str = "",
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        truncate: convert.Side = "right",
        byte_spans: bool = False,
        tokens: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Encoding:
        """Token ids of a text. `byte_spans` and `tokens` ask for each token's place and its vocabulary entry."""
        return self.encode_batch(
            [text],
            model=model,
            add_special_tokens=add_special_tokens,
            max_tokens=max_tokens,
            truncate=truncate,
            byte_spans=byte_spans,
            tokens=tokens,
            timeout=timeout,
            request_id=request_id,
        )[0]

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        truncate: convert.Side = "right",
        byte_spans: bool = False,
        tokens: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[Encoding]:
        """Token ids of many texts in one call. Longer results than `max_tokens` lose the end that `truncate` names."""
        request = convert.encode_request(
            texts,
            model=model,
            add_special_tokens=add_special_tokens,
            max_tokens=max_tokens,
            truncate=truncate,
            byte_spans=byte_spans,
            tokens=tokens,
        )
        response = self._caller.unary(self._stub.Encode, request, timeout=timeout, request_id=request_id)
        return convert.encodings(response, len(texts))

    def decode(
        self,
        ids: Sequence[int],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_batch(
            [ids], model=model, skip_special_tokens=skip_special_tokens, timeout=timeout, request_id=request_id
        )[0]

    def decode_batch(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[str]:
        """The texts of many lists of token ids in one call."""
        request = convert.decode_request(inputs, model=model, skip_special_tokens=skip_special_tokens)
        response = self._caller.unary(self._stub.Decode, request, timeout=timeout, request_id=request_id)
        return convert.decoded(response, len(inputs))

    def count_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        model: str = "",
        tools: Sequence[Tool] = (),
        add_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> int:
        """Tokens of a text, or of a conversation rendered through the chat template."""
        request = convert.count_request(prompt, model=model, tools=tools, add_special_tokens=add_special_tokens)
        response = self._caller.unary(self._stub.CountTokens, request, timeout=timeout, request_id=request_id)
        return convert.counts(response, 1)[0]

    def count_tokens_batch(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """Tokens of many texts in one call."""
        request = convert.count_batch_request(texts, model=model, add_special_tokens=add_special_tokens)
        response = self._caller.unary(self._stub.CountTokens, request, timeout=timeout, request_id=request_id)
        return convert.counts(response, len(texts))

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        model: str = "",
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        ids: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> RenderedChat:
        """A conversation as the model sees it, with its token ids where `ids` asks for them."""
        request = convert.render_request(
            messages, model=model, tools=tools, add_generation_prompt=add_generation_prompt, ids=ids
        )
        response = self._caller.unary(self._stub.RenderChat, request, timeout=timeout, request_id=request_id)
        return convert.rendered(response)

    def get_tokenizer(
        self, model: str = "", *, timeout: float | None = None, request_id: str | None = None
    ) -> Tokenizer:
        """A model's tokenizer: its fingerprint, size and special tokens."""
        request = rpc.GetTokenizerRequest(model=model)
        response = self._caller.unary(self._stub.GetTokenizer, request, timeout=timeout, request_id=request_id)
        return convert.tokenizer(response.tokenizer)

    def download_tokenizer(
        self,
        directory: str | os.PathLike[str],
        *,
        model: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[Path]:
        """Fetches a tokenizer's files, to tokenize without a server and with the same result.

        Each file is checked against its SHA-256, and `directory` changes only once all of them are complete. Gives
        the files' paths.
        """
        plan = self._caller.plan(timeout, request_id)
        request = rpc.StreamTokenizerFilesRequest(model=model)
        with (
            TokenizerDownload(directory) as download,
            Stream(self._stub.StreamTokenizerFiles, request, plan, download) as parts,
        ):
            for _ in parts:
                pass
            return download.commit()


class AsyncTokenizationClient:
    """Tokenization for asyncio; each method does what its namesake in `TokenizationClient` does."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self._stub = TokenizationServiceStub(caller.channel)

    async def encode(
        self,
        text: str,
        *,
        model: str = "",
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        truncate: convert.Side = "right",
        byte_spans: bool = False,
        tokens: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Encoding:
        """See `TokenizationClient.encode`."""
        encodings = await self.encode_batch(
            [text],
            model=model,
            add_special_tokens=add_special_tokens,
            max_tokens=max_tokens,
            truncate=truncate,
            byte_spans=byte_spans,
            tokens=tokens,
            timeout=timeout,
            request_id=request_id,
        )
        return encodings[0]

    async def encode_batch(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        max_tokens: int | None = None,
        truncate: convert.Side = "right",
        byte_spans: bool = False,
        tokens: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[Encoding]:
        """See `TokenizationClient.encode_batch`."""
        request = convert.encode_request(
            texts,
            model=model,
            add_special_tokens=add_special_tokens,
            max_tokens=max_tokens,
            truncate=truncate,
            byte_spans=byte_spans,
            tokens=tokens,
        )
        response = await self._caller.unary(self._stub.Encode, request, timeout=timeout, request_id=request_id)
        return convert.encodings(response, len(texts))

    async def decode(
        self,
        ids: Sequence[int],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> str:
        """See `TokenizationClient.decode`."""
        texts = await self.decode_batch(
            [ids], model=model, skip_special_tokens=skip_special_tokens, timeout=timeout, request_id=request_id
        )
        return texts[0]

    async def decode_batch(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        model: str = "",
        skip_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[str]:
        """See `TokenizationClient.decode_batch`."""
        request = convert.decode_request(inputs, model=model, skip_special_tokens=skip_special_tokens)
        response = await self._caller.unary(self._stub.Decode, request, timeout=timeout, request_id=request_id)
        return convert.decoded(response, len(inputs))

    async def count_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        model: str = "",
        tools: Sequence[Tool] = (),
        add_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> int:
        """See `TokenizationClient.count_tokens`."""
        request = convert.count_request(prompt, model=model, tools=tools, add_special_tokens=add_special_tokens)
        response = await self._caller.unary(self._stub.CountTokens, request, timeout=timeout, request_id=request_id)
        return convert.counts(response, 1)[0]

    async def count_tokens_batch(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        add_special_tokens: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[int]:
        """See `TokenizationClient.count_tokens_batch`."""
        request = convert.count_batch_request(texts, model=model, add_special_tokens=add_special_tokens)
        response = await self._caller.unary(self._stub.CountTokens, request, timeout=timeout, request_id=request_id)
        return convert.counts(response, len(texts))

    async def render_chat(
        self,
        messages: Sequence[Message],
        *,
        model: str = "",
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        ids: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> RenderedChat:
        """See `TokenizationClient.render_chat`."""
        request = convert.render_request(
            messages, model=model, tools=tools, add_generation_prompt=add_generation_prompt, ids=ids
        )
        response = await self._caller.unary(self._stub.RenderChat, request, timeout=timeout, request_id=request_id)
        return convert.rendered(response)

    async def get_tokenizer(
        self, model: str = "", *, timeout: float | None = None, request_id: str | None = None
    ) -> Tokenizer:
        """See `TokenizationClient.get_tokenizer`."""
        request = rpc.GetTokenizerRequest(model=model)
        response = await self._caller.unary(self._stub.GetTokenizer, request, timeout=timeout, request_id=request_id)
        return convert.tokenizer(response.tokenizer)

    async def download_tokenizer(
        self,
        directory: str | os.PathLike[str],
        *,
        model: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[Path]:
        """See `TokenizationClient.download_tokenizer`. Parts are at most 256 KiB, so writing them hardly blocks."""
        plan = self._caller.plan(timeout, request_id)
        request = rpc.StreamTokenizerFilesRequest(model=model)
        with TokenizerDownload(directory) as download:
            async with AsyncStream(self._stub.StreamTokenizerFiles, request, plan, download) as parts:
                async for _ in parts:
                    pass
            return download.commit()
