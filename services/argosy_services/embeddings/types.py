"""The vocabulary of embeddings."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Pooling(enum.Enum):
    """How token vectors become one vector."""

    MEAN = "mean"
    CLS = "cls"


@dataclass(frozen=True, slots=True)
class EmbeddingModelInfo:
    """What an embedding model is; see `EmbeddingModel` in embedding_model.proto."""

    name: str
    architecture: str
    dimensions: int
    max_input_tokens: int
    pooling: Pooling
    normalizes: bool
    tokenizer_fingerprint: str
    dtype: str
    parameter_count: int


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds that a call spent: on tokens, waiting for the first batch, from there to the last, and altogether."""

    tokenization_s: float
    queue_s: float
    compute_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of one call.

    `vectors` is float32 [texts, dimensions]; `tokens` and `truncated` have one entry for each text. `adapter` and its
    version are empty where there was none.
    """

    model: EmbeddingModelInfo
    vectors: NDArray[np.float32]
    tokens: list[int]
    truncated: list[bool]
    timings: StageTimings
    adapter: str = ""
    adapter_version: str = ""
