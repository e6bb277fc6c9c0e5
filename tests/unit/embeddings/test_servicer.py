"""The service through gRPC, with the generated stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from argosy.api.embeddings.v1 import embedding_model_pb2
from argosy.api.embeddings.v1 import embeddings_service_pb2 as pb
from argosy.api.embeddings.v1 import embeddings_service_pb2_grpc as pb_grpc
from argosy_services.embeddings.encoder import Encoder
from argosy_services.embeddings.servicer import EmbeddingsServicer
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.gate import Gate

from ..serving import serving
from .adapted import running

TEXTS = ["A ship.", "", "A longer text about a ship at sea. " * 30]


@pytest.fixture(scope="module")
async def stub(encoder: Encoder) -> AsyncIterator[pb_grpc.EmbeddingsServiceAsyncStub]:
    with running(encoder) as (service, _, _):
        gate = Gate()
        gate.open()
        servicer = EmbeddingsServicer(service, gate, Authenticator())
        async with serving(partial(pb_grpc.add_EmbeddingsServiceServicer_to_server, servicer)) as channel:
            yield pb_grpc.EmbeddingsServiceStub(channel)


async def test_floats_and_packed_bytes_are_the_same_vectors(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, encoder: Encoder
) -> None:
    floats = await stub.Embed(pb.EmbedRequest(texts=TEXTS))
    packed = await stub.Embed(pb.EmbedRequest(texts=TEXTS, format=pb.EMBEDDING_FORMAT_PACKED))
    rows = np.array([embedding.values for embedding in floats.embeddings], np.float32)
    assert rows.shape == (3, 384)
    assert not floats.packed
    np.testing.assert_allclose(np.frombuffer(packed.packed, "<f4").reshape(3, 384), rows, atol=1e-6)
    for response in (floats, packed):
        assert (response.model, response.dimensions) == (encoder.info.name, 384)
        assert response.tokenizer_fingerprint == encoder.tokenizer.fingerprint
        assert [embedding.tokens for embedding in response.embeddings] == [5, 2, 256]
        assert [embedding.truncated for embedding in response.embeddings] == [False, False, True]
        assert response.usage.prompt_tokens == 263
        assert response.timings.HasField("prefill")
        assert not response.timings.HasField("decode")
        assert response.timings.total.ToNanoseconds() >= response.timings.prefill.ToNanoseconds() > 0
    assert not any(embedding.values for embedding in packed.embeddings)


async def test_options(stub: pb_grpc.EmbeddingsServiceAsyncStub) -> None:
    unit = await stub.Embed(pb.EmbedRequest(texts=TEXTS[:1], dimensions=8))
    plain = await stub.Embed(pb.EmbedRequest(texts=TEXTS[:1], dimensions=8, normalize=False))
    assert unit.dimensions == plain.dimensions == 8
    short, long = np.array(unit.embeddings[0].values), np.array(plain.embeddings[0].values)
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(long / np.linalg.norm(long), short, atol=1e-6)


async def test_the_model_is_described(stub: pb_grpc.EmbeddingsServiceAsyncStub, encoder: Encoder) -> None:
    model = (await stub.GetModel(pb.GetModelRequest())).model
    assert (model.name, model.architecture, model.dimensions) == (encoder.info.name, "BertModel", 384)
    assert (model.max_input_tokens, model.pooling) == (256, embedding_model_pb2.POOLING_MEAN)
    assert (model.normalizes, model.dtype) == (True, "float32")
    assert model.parameter_count == encoder.info.parameter_count
    assert model == (await stub.GetModel(pb.GetModelRequest(name=encoder.info.name))).model


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [
        (pb.EmbedRequest(), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (pb.EmbedRequest(texts=["x"], model="nonesuch"), "NOT_FOUND", "MODEL_NOT_FOUND"),
        (pb.EmbedRequest(texts=["x"] * 10_000), "INVALID_ARGUMENT", "TOO_MANY_INPUTS"),
        (pb.EmbedRequest(texts=["x" * 2_000_000]), "INVALID_ARGUMENT", "INPUT_TOO_LARGE"),
        (pb.EmbedRequest(texts=TEXTS, truncate=False), "INVALID_ARGUMENT", "PROMPT_TOO_LONG"),
        (pb.EmbedRequest(texts=["x"], dimensions=0), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (pb.EmbedRequest(texts=["x"], format=9), "INVALID_ARGUMENT", "INVALID_FIELD"),  # type: ignore[arg-type]
        (pb.EmbedRequest(texts=["x"], tokenizer_fingerprint="00"), "FAILED_PRECONDITION", "TOKENIZER_MISMATCH"),
    ],
)
async def test_errors_have_their_code_and_reason(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, request_: pb.EmbedRequest, code: str, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(request_)
    status = status_pb2.Status.FromString(dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert (caught.value.code().name, info.reason) == (code, reason)


async def test_a_deadline_ends_the_work(stub: pb_grpc.EmbeddingsServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(pb.EmbedRequest(texts=[TEXTS[2]] * 2000), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await stub.Embed(pb.EmbedRequest(texts=["next"]), timeout=30)).usage.prompt_tokens == 3
