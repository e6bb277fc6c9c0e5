"""Limits and options of a call, on the real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import numpy as np
import pytest

from argosy_services import metrics
from argosy_services.embeddings.adapters import EncoderAdapters
from argosy_services.embeddings.encoder import Encoder
from argosy_services.embeddings.service import MAX_TEXT_BYTES, MAX_TEXTS, EmbeddingsService
from argosy_services.errors import ArgosyError, Reason

from .adapted import Leases, running


@pytest.fixture(scope="module")
async def service(encoder: Encoder) -> AsyncIterator[EmbeddingsService]:
    with running(encoder) as (service, _, _):
        yield service


async def refused(call: Awaitable[object]) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        await call
    return caught.value


async def test_each_text_has_a_vector_of_length_one(service: EmbeddingsService, encoder: Encoder) -> None:
    texts = ["A ship.", "", "A much longer text about a ship at sea. " * 20, "né 😀"]
    embeddings = await service.embed(texts)
    assert embeddings.model == encoder.info
    assert embeddings.vectors.shape == (4, 384)
    assert embeddings.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-6)
    assert embeddings.tokens == [5, 2, 202, 4]
    assert embeddings.truncated == [False] * 4
    timings = embeddings.timings
    assert min(timings.tokenization_s, timings.queue_s, timings.compute_s) >= 0
    assert timings.total_s >= timings.tokenization_s + timings.queue_s + timings.compute_s


async def test_similar_texts_have_similar_vectors(service: EmbeddingsService) -> None:
    ship, boat, bread = (await service.embed(["A ship at sea.", "A boat on the ocean.", "Bake the bread."])).vectors
    assert ship @ boat > 0.6
    assert ship @ bread < 0.3


async def test_vectors_keep_their_length_where_asked(service: EmbeddingsService) -> None:
    plain = (await service.embed(["A ship."], normalize=False)).vectors[0]
    assert np.linalg.norm(plain) > 2
    unit = (await service.embed(["A ship."])).vectors[0]
    np.testing.assert_allclose(plain / np.linalg.norm(plain), unit, atol=1e-6)


async def test_fewer_dimensions_are_cut_first_and_scaled_then(service: EmbeddingsService) -> None:
    plain = (await service.embed(["A ship."], normalize=False)).vectors
    cut = (await service.embed(["A ship."], normalize=False, dimensions=64)).vectors
    np.testing.assert_allclose(cut, plain[:, :64], atol=1e-6)
    unit = (await service.embed(["A ship."], dimensions=64)).vectors
    np.testing.assert_allclose(unit, cut / np.linalg.norm(cut), atol=1e-6)


async def test_a_long_text_is_cut_or_refused(service: EmbeddingsService) -> None:
    text = "word " * 300
    embeddings = await service.embed(["short", text])
    assert (embeddings.tokens, embeddings.truncated) == ([3, 256], [False, True])
    np.testing.assert_allclose(embeddings.vectors[1], (await service.embed(["word " * 254])).vectors[0], atol=1e-6)
    error = await refused(service.embed(["short", text], truncate=False))
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert error.metadata == {"field": "texts[1]", "limit": "256", "value": "302"}


async def test_a_fingerprint_is_checked_where_given(service: EmbeddingsService, encoder: Encoder) -> None:
    await service.embed(["x"], tokenizer_fingerprint=encoder.tokenizer.fingerprint)
    error = await refused(service.embed(["x"], tokenizer_fingerprint="f" * 64))
    assert error.reason is Reason.TOKENIZER_MISMATCH
    assert error.metadata["expected"] == encoder.tokenizer.fingerprint


@pytest.mark.parametrize(
    ("arguments", "reason", "metadata"),
    [
        ({"texts": []}, Reason.INVALID_FIELD, {"field": "texts"}),
        ({"texts": ["x"] * 10_000}, Reason.TOO_MANY_INPUTS, {"limit": str(MAX_TEXTS), "value": "10000"}),
        (
            {"texts": ["x", "x" * (MAX_TEXT_BYTES + 1)]},
            Reason.INPUT_TOO_LARGE,
            {"field": "texts[1]", "limit": str(MAX_TEXT_BYTES), "value": str(MAX_TEXT_BYTES + 1)},
        ),
        ({"texts": ["x"], "dimensions": 0}, Reason.INVALID_FIELD, {"field": "dimensions", "value": "0"}),
        ({"texts": ["x"], "dimensions": 385}, Reason.INVALID_FIELD, {"field": "dimensions", "limit": "1 to 384"}),
        ({"texts": ["x"], "model": "nonesuch"}, Reason.MODEL_NOT_FOUND, {"model": "nonesuch"}),
    ],
)
async def test_limits(
    service: EmbeddingsService, arguments: dict[str, Any], reason: Reason, metadata: dict[str, str]
) -> None:
    error = await refused(service.embed(**arguments))
    assert error.reason is reason
    assert metadata.items() <= error.metadata.items()


async def test_calls_at_once_get_their_own_vectors(service: EmbeddingsService) -> None:
    texts = [f"text number {number} " * (number % 7 + 1) for number in range(60)]
    together = (await service.embed(texts)).vectors
    alone = await asyncio.gather(*(service.embed([text]) for text in texts))
    np.testing.assert_allclose(together, np.concatenate([one.vectors for one in alone]), atol=1e-5)


async def test_a_cancelled_call_leaves_no_work(service: EmbeddingsService, encoder: Encoder) -> None:
    counter = metrics.EMBEDDED_TEXTS.labels(model=encoder.info.name)
    before = counter.now()
    call = asyncio.create_task(service.embed(["some longer text, again and again " * 30] * 1000))
    while counter.now() == before:
        await asyncio.sleep(0.005)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await service.embed(["next"])
    assert counter.now() < before + 100


async def test_work_is_counted(service: EmbeddingsService, encoder: Encoder) -> None:
    texts = metrics.EMBEDDED_TEXTS.labels(model=encoder.info.name)
    tokens = metrics.EMBEDDED_TOKENS.labels(model=encoder.info.name)
    before = texts.now(), tokens.now()
    await service.embed(["A ship.", ""])
    assert (texts.now(), tokens.now()) == (before[0] + 2, before[1] + 7)


async def test_calls_that_wait_end_when_the_service_closes(encoder: Encoder) -> None:
    adapters = EncoderAdapters(encoder, max_rank=16)
    service = EmbeddingsService([encoder], Leases("x"), adapters, max_batch_tokens=256, max_waiting_texts=4096)
    service.start()
    call = asyncio.create_task(service.embed(["some longer text, again and again " * 30] * 500))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(service.close)
    assert (await refused(call)).reason is Reason.DRAINING
