"""The service through gRPC, with the generated stubs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from functools import partial

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from argosy.api.common.v1 import chat_pb2, usage_pb2
from argosy.api.tokenization.v1 import tokenization_service_pb2 as pb
from argosy.api.tokenization.v1 import tokenization_service_pb2_grpc as pb_grpc
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.gate import Gate
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.service import TokenizationService
from argosy_services.tokenization.servicer import TokenizationServicer

from ..serving import serving

CHAT = chat_pb2.ChatPrompt(messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hello")])


@pytest.fixture(scope="module")
async def stub(byte_level: Tokenizer, word_piece: Tokenizer) -> AsyncIterator[pb_grpc.TokenizationServiceAsyncStub]:
    service = TokenizationService([byte_level, word_piece], default=byte_level.model)
    gate = Gate()
    gate.open()
    servicer = TokenizationServicer(service, gate, Authenticator())
    async with serving(partial(pb_grpc.add_TokenizationServiceServicer_to_server, servicer)) as channel:
        yield pb_grpc.TokenizationServiceStub(channel)
    service.close()


async def test_encode_and_decode(stub: pb_grpc.TokenizationServiceAsyncStub, byte_level: Tokenizer) -> None:
    texts = ["Hello", "", "né 😀"]
    encoded = await stub.Encode(pb.EncodeRequest(texts=texts, return_byte_offsets=True, return_tokens=True))
    assert [list(encoding.ids) for encoding in encoded.encodings] == [byte_level.encode(text) for text in texts]
    last = encoded.encodings[2]
    assert list(zip(last.byte_starts, last.byte_ends, strict=True)) == [(0, 1), (1, 3), (3, 8), (4, 8)]
    assert list(last.tokens) == ["n", "Ã©", "ĠðŁĺ", "Ģ"]
    assert encoded.tokenizer_fingerprint == byte_level.fingerprint
    inputs = [usage_pb2.TokenIds(ids=encoding.ids) for encoding in encoded.encodings]
    decoded = await stub.Decode(pb.DecodeRequest(inputs=inputs))
    assert list(decoded.texts) == texts
    assert decoded.tokenizer_fingerprint == byte_level.fingerprint


async def test_options_of_encode(stub: pb_grpc.TokenizationServiceAsyncStub, word_piece: Tokenizer) -> None:
    request = pb.EncodeRequest(
        model=word_piece.model, texts=["one two three"], max_tokens=3, truncation_side=pb.TRUNCATION_SIDE_LEFT
    )
    (encoding,) = (await stub.Encode(request)).encodings
    assert (list(encoding.ids), encoding.truncated_tokens) == ([101, 2093, 102], 2)
    assert not encoding.byte_starts
    assert not encoding.tokens
    request = pb.EncodeRequest(model=word_piece.model, texts=["one"], add_special_tokens=False)
    assert list((await stub.Encode(request)).encodings[0].ids) == [2028]


async def test_special_tokens_are_decoded_where_asked_for(stub: pb_grpc.TokenizationServiceAsyncStub) -> None:
    inputs = [usage_pb2.TokenIds(ids=[1, 2])]
    assert list((await stub.Decode(pb.DecodeRequest(inputs=inputs))).texts) == [""]
    shown = await stub.Decode(pb.DecodeRequest(inputs=inputs, skip_special_tokens=False))
    assert list(shown.texts) == ["<|im_start|><|im_end|>"]


async def test_counts_of_texts_and_of_a_chat(
    stub: pb_grpc.TokenizationServiceAsyncStub, byte_level: Tokenizer, word_piece: Tokenizer
) -> None:
    texts = pb.TextBatch(texts=["one", ""])
    counted = await stub.CountTokens(pb.CountTokensRequest(model=word_piece.model, texts=texts))
    assert (list(counted.counts), counted.tokenizer_fingerprint) == ([3, 2], word_piece.fingerprint)
    counted = await stub.CountTokens(
        pb.CountTokensRequest(model=word_piece.model, texts=texts, add_special_tokens=False)
    )
    assert list(counted.counts) == [1, 0]
    rendered = await stub.RenderChat(pb.RenderChatRequest(chat=CHAT, return_ids=True))
    assert rendered.text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert list(rendered.ids) == byte_level.encode(rendered.text, add_special_tokens=False)
    counted = await stub.CountTokens(pb.CountTokensRequest(chat=CHAT))
    assert list(counted.counts) == [len(rendered.ids)]
    assert not (await stub.RenderChat(pb.RenderChatRequest(chat=CHAT))).ids


async def test_a_tokenizer_is_described(stub: pb_grpc.TokenizationServiceAsyncStub, word_piece: Tokenizer) -> None:
    tokenizer = (await stub.GetTokenizer(pb.GetTokenizerRequest(model=word_piece.model))).tokenizer
    assert (tokenizer.model, tokenizer.fingerprint) == (word_piece.model, word_piece.fingerprint)
    assert (tokenizer.vocabulary_size, tokenizer.max_context_tokens) == (30522, 256)
    assert tokenizer.HasField("pad_token_id")
    assert not tokenizer.HasField("bos_token_id")
    assert (tokenizer.special_tokens[2].text, tokenizer.special_tokens[2].id) == ("[CLS]", 101)


async def test_files_come_in_chunks(stub: pb_grpc.TokenizationServiceAsyncStub) -> None:
    received: dict[str, bytes] = {}
    headers: dict[str, pb.TokenizerFile] = {}
    async for part in stub.StreamTokenizerFiles(pb.StreamTokenizerFilesRequest()):
        if part.HasField("file"):
            name = part.file.name
            headers[name], received[name] = part.file, b""
        else:
            assert 0 < len(part.chunk) <= 256 << 10
            received[name] += part.chunk
    assert {"tokenizer.json", "chat_template.jinja"} <= received.keys()
    for name, content in received.items():
        assert headers[name].size_bytes == len(content)
        assert headers[name].sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("Encode", pb.EncodeRequest(model="nonesuch", texts=["x"]), "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("Encode", pb.EncodeRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("Encode", pb.EncodeRequest(texts=["x" * 10_000_000]), "INVALID_ARGUMENT", "INPUT_TOO_LARGE"),
        ("Encode", pb.EncodeRequest(texts=["x"] * 4097), "INVALID_ARGUMENT", "TOO_MANY_INPUTS"),
        ("Encode", pb.EncodeRequest(texts=["x"], max_tokens=0), "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("Encode", pb.EncodeRequest(texts=["x"], truncation_side=7), "INVALID_ARGUMENT", "INVALID_FIELD"),  # type: ignore[arg-type]
        (
            "Decode",
            pb.DecodeRequest(inputs=[usage_pb2.TokenIds(ids=[1 << 31])]),
            "INVALID_ARGUMENT",
            "INVALID_FIELD",
        ),
        ("CountTokens", pb.CountTokensRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
        ("RenderChat", pb.RenderChatRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (
            "RenderChat",
            pb.RenderChatRequest(model="all-minilm-l6-v2", chat=CHAT),
            "FAILED_PRECONDITION",
            "CHAT_TEMPLATE_MISSING",
        ),
        ("GetTokenizer", pb.GetTokenizerRequest(model="nonesuch"), "NOT_FOUND", "MODEL_NOT_FOUND"),
    ],
)
async def test_errors_have_their_code_and_reason(
    stub: pb_grpc.TokenizationServiceAsyncStub, method: str, request_: object, code: str, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_)
    assert (caught.value.code().name, reason_of(caught.value)) == (code, reason)


async def test_files_of_an_unknown_model(stub: pb_grpc.TokenizationServiceAsyncStub) -> None:
    parts = stub.StreamTokenizerFiles(pb.StreamTokenizerFilesRequest(model="nonesuch"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [part async for part in parts]
    assert reason_of(caught.value) == "MODEL_NOT_FOUND"


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason
