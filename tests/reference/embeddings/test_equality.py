"""The same vectors as sentence-transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from argosy_services.embeddings.encoder import Encoder
from argosy_services.models.types import LocalModel

from ...unit.embeddings.adapted import running
from ...unit.processors import REDUCED

LEAST_COSINE = 0.999_999
LEAST_COSINES = {"bfloat16": 0.999, "int16": 0.9999}
WORDS = ["ship", "sea", "storm", "harbour", "captain", "sailed", "north", "é", "日本", "😀", "don't", "3.14", "UPPER"]
ODD = ["", " ", "\n", "😀" * 50, "x" * 5000, "[SEP] [MASK]", "\u0000control\u0007", "مرحبا שלום"]


@pytest.fixture(scope="module")
def reference(minilm: LocalModel) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(minilm.path), device="cpu")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of 1 to 400 words: some are longer than the model takes."""
    draw = random.Random(3)
    return [*ODD, *(" ".join(draw.choices(WORDS, k=k)) for k in (1, 2, 5, 12, 40, 120, 400) for _ in range(4))]


@pytest.fixture(scope="module")
def expected(reference: Any, texts: list[str]) -> NDArray[np.float32]:
    return reference.encode(texts)


@pytest.mark.parametrize("budget", [64, 4096])
async def test_vectors_of_mixed_lengths_in_one_call(
    minilm: LocalModel, texts: list[str], expected: NDArray[np.float32], budget: int
) -> None:
    with running(Encoder.load(minilm), max_batch_tokens=budget) as (service, _, _):
        embeddings = await service.embed(texts)
    assert embeddings.vectors.shape == expected.shape
    assert np.sum(embeddings.vectors * expected, axis=1).min() >= LEAST_COSINE
    np.testing.assert_allclose(embeddings.vectors, expected, atol=2e-6)
    assert any(embeddings.truncated)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("int16", marks=REDUCED)])
def test_vectors_in_fewer_bits(minilm: LocalModel, texts: list[str], expected: NDArray[np.float32], dtype: str) -> None:
    encoder = Encoder.load(minilm, dtype)
    assert encoder.info.dtype == dtype
    vectors = encoder.embed([encoding.ids for encoding in encoder.tokenize(texts)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.sum(vectors * expected, axis=1).min() >= LEAST_COSINES[dtype]


def test_vectors_of_the_first_token(reference: Any, minilm: LocalModel, texts: list[str], tmp_path: Path) -> None:
    """CLS pooling, without scaling to length 1, which the bundled model does not use."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling

    changed = SentenceTransformer(modules=[reference[0], Pooling(384, pooling_mode="cls")], device="cpu")
    changed.save(str(tmp_path), create_model_card=False)
    encoder = Encoder.load(LocalModel("cls", "file://", tmp_path, fingerprint="0" * 64, size_bytes=0))
    assert not encoder.info.normalizes
    ours = encoder.embed([encoding.ids for encoding in encoder.tokenize(texts[::4])])
    np.testing.assert_allclose(ours, changed.encode(texts[::4]), atol=1e-5)


def test_tokens_of_the_longest_texts(reference: Any, minilm: LocalModel, texts: list[str]) -> None:
    encoder = Encoder.load(minilm)
    assert encoder.info.max_input_tokens == reference.max_seq_length
    expected = reference.tokenizer(texts, truncation=True, max_length=reference.max_seq_length)["input_ids"]
    assert [encoding.ids for encoding in encoder.tokenize(texts)] == expected
