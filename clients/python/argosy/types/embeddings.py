"""Sentence embeddings."""

from __future__ import annotations

import enum
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from argosy.types.common import Timings, Usage


class Pooling(enum.StrEnum):
    """How token vectors become one vector."""

    UNKNOWN = "unknown"
    MEAN = "mean"
    CLS = "cls"


@dataclass(frozen=True)
class Embeddings:
    """One vector for each text, in the order of the request.

    All vectors lie in `buffer`, one after the other: float32, texts x dimensions. `embeddings[i]` is a view of one
    of them, `vectors` a list of lists, and `numpy.asarray(embeddings)` an array, without a copy. `tokens` and
    `truncated` tell for each text how many tokens were embedded and whether it was cut. `adapter` and its version say
    which adapter was used; they are empty for the model alone.
    """

    model: str
    dimensions: int
    buffer: memoryview[float]
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    usage: Usage
    timings: Timings
    tokenizer_fingerprint: str
    adapter: str = ""
    adapter_version: str = ""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> memoryview[float]:
        row = range(len(self))[index]
        return self.buffer[row * self.dimensions : (row + 1) * self.dimensions]

    def __iter__(self) -> Iterator[memoryview[float]]:
        return (self[row] for row in range(len(self)))

    @cached_property
    def vectors(self) -> list[list[float]]:
        """The vectors as plain lists."""
        return [list(row) for row in self]

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's description of `buffer`; with it `numpy.asarray` needs no help of ours."""
        shape = (len(self), self.dimensions)
        return {"version": 3, "shape": shape, "typestr": "=f4", "data": self.buffer}

    def numpy(self) -> Any:
        """A float32 array, texts x dimensions, on the same memory. Raises ModuleNotFoundError without numpy."""
        return importlib.import_module("numpy").asarray(self)


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A served embedding model. `normalizes`: vectors have length 1 unless a request says otherwise."""

    name: str
    architecture: str
    dimensions: int
    max_input_tokens: int
    pooling: Pooling
    normalizes: bool
    tokenizer_fingerprint: str
    dtype: str
    parameter_count: int
