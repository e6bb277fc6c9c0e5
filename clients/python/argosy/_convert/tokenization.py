"""Tokenization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from argosy._convert import common
from argosy.api.tokenization.v1 import tokenization_service_pb2 as rpc
from argosy.api.tokenization.v1 import tokenizer_pb2
from argosy.errors import ProtocolError
from argosy.types.common import Message, Tool
from argosy.types.tokenization import Encoding, RenderedChat, SpecialToken, Tokenizer

Side = Literal["left", "right"]

_SIDES = {"right": rpc.TRUNCATION_SIDE_RIGHT, "left": rpc.TRUNCATION_SIDE_LEFT}


def encode_request(
    texts: Sequence[str],
    *,
    model: str,
    add_special_tokens: bool,
    max_tokens: int | None,
    truncate: Side,
    byte_spans: bool,
    tokens: bool,
) -> rpc.EncodeRequest:
    """Texts to encode."""
    if truncate not in _SIDES:
        raise ValueError(f"truncate must be 'left' or 'right' (given: {truncate!r})")
    request = rpc.EncodeRequest(
        model=model,
        texts=common.texts_of("texts", texts),
        add_special_tokens=add_special_tokens,
        truncation_side=_SIDES[truncate],
        return_byte_offsets=byte_spans,
        return_tokens=tokens,
    )
    if max_tokens is not None:
        common.set_field(request, "max_tokens", max_tokens, name="max_tokens")
    return request


def encodings(message: rpc.EncodeResponse, expected: int) -> list[Encoding]:
    """One encoding for each text."""
    _check_count(len(message.encodings), expected)
    return [
        Encoding(
            ids=tuple(encoding.ids),
            byte_spans=tuple(zip(encoding.byte_starts, encoding.byte_ends, strict=False)),
            tokens=tuple(encoding.tokens),
            truncated_tokens=encoding.truncated_tokens,
            tokenizer_fingerprint=message.tokenizer_fingerprint,
        )
        for encoding in message.encodings
    ]


def decode_request(inputs: Sequence[Sequence[int]], *, model: str, skip_special_tokens: bool) -> rpc.DecodeRequest:
    """Token ids to decode."""
    return rpc.DecodeRequest(
        model=model,
        inputs=[common.token_ids(f"inputs[{position}]", ids) for position, ids in enumerate(inputs)],
        skip_special_tokens=skip_special_tokens,
    )


def decoded(message: rpc.DecodeResponse, expected: int) -> list[str]:
    """One text for each input."""
    _check_count(len(message.texts), expected)
    return list(message.texts)


def count_request(
    prompt: str | Sequence[Message], *, model: str, tools: Sequence[Tool], add_special_tokens: bool
) -> rpc.CountTokensRequest:
    """A text, or a conversation that is rendered first."""
    if not isinstance(prompt, str):
        return rpc.CountTokensRequest(model=model, chat=common.chat_prompt(prompt, tools))
    return count_batch_request([prompt], model=model, add_special_tokens=add_special_tokens)


def count_batch_request(texts: Sequence[str], *, model: str, add_special_tokens: bool) -> rpc.CountTokensRequest:
    """Texts to count."""
    batch = rpc.TextBatch(texts=common.texts_of("texts", texts))
    return rpc.CountTokensRequest(model=model, texts=batch, add_special_tokens=add_special_tokens)


def counts(message: rpc.CountTokensResponse, expected: int) -> list[int]:
    """One count for each text, or a single one for a conversation."""
    _check_count(len(message.counts), expected)
    return list(message.counts)


def render_request(
    messages: Sequence[Message], *, model: str, tools: Sequence[Tool], add_generation_prompt: bool, ids: bool
) -> rpc.RenderChatRequest:
    """A conversation to render."""
    chat = common.chat_prompt(messages, tools)
    chat.add_generation_prompt = add_generation_prompt
    return rpc.RenderChatRequest(model=model, chat=chat, return_ids=ids)


def rendered(message: rpc.RenderChatResponse) -> RenderedChat:
    """The conversation as the model sees it."""
    return RenderedChat(message.text, tuple(message.ids), message.tokenizer_fingerprint)


def tokenizer(message: tokenizer_pb2.Tokenizer) -> Tokenizer:
    """A served model's tokenizer."""
    return Tokenizer(
        model=message.model,
        fingerprint=message.fingerprint,
        vocabulary_size=message.vocabulary_size,
        special_tokens=tuple(SpecialToken(token.text, token.id) for token in message.special_tokens),
        has_chat_template=message.has_chat_template,
        bos_token_id=common.optional(message, "bos_token_id"),
        eos_token_id=common.optional(message, "eos_token_id"),
        pad_token_id=common.optional(message, "pad_token_id"),
        max_context_tokens=message.max_context_tokens,
    )


def _check_count(given: int, expected: int) -> None:
    if given != expected:
        raise ProtocolError(f"the server sent {given} results for {expected} inputs")
