"""What the operations of a decoder write and read: made once, for the most rows that a step may have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.native.layout import CHUNK, GROUP, LARGE_GROUP
from argosy_services.engine.torch_engine.native.memory import zeros
from argosy_services.engine.torch_engine.native.panels import LINE, PANEL

LOGIT_ROWS = 128
"""Rows of logits that are computed at once."""
_TYPES = {
    "int8": torch.int8,
    "int13": torch.int16,
    "int16": torch.int16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a product takes in, rows of `size` numbers of a format's type: `values` `[panels, lines, rows of a panel,
    numbers of a line]`, see `panels.py`, for int8, int13 and int16 with `scales` float32 and `offsets` int32
    `[rows, groups]`; int13 needs no offsets."""

    values: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, rows: int, size: int, form: str) -> Inputs:
        """Zeros."""
        line = LINE // _TYPES[form].itemsize
        groups = size // (_large_group(size) if form == "int13" else GROUP)
        return cls(
            values=zeros(-(-rows // PANEL), size // line, PANEL, line, dtype=_TYPES[form]),
            scales=zeros(rows, groups),
            offsets=zeros(rows, groups, dtype=torch.int32),
        )

    @property
    def size(self) -> int:
        """Numbers of a row."""
        return self.values.shape[1] * self.values.shape[3]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.size * self.values.itemsize

    @property
    def group(self) -> int:
        """How many inputs share a scale."""
        return self.size // self.scales.shape[1]


class Buffers:
    """float32 `[rows, columns]` unless said otherwise; `largest` is int64 `[LOGIT_ROWS]`."""

    def __init__(self, config: DecoderConfig, rows: int, *, form: str, queries: str) -> None:
        query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.states = zeros(rows, _whole(config.hidden_size))
        self.qkv = zeros(rows, _whole(query + 2 * key_value))
        self.queries = zeros(rows, query, dtype=_TYPES[queries])
        self.attended = zeros(rows, query)
        self.gate_up = zeros(rows, _whole(2 * config.intermediate_size))
        self.logits = zeros(LOGIT_ROWS, _whole(config.vocab_size))
        self.largest = np.zeros(LOGIT_ROWS, np.int64)
        self.normed = Inputs.of(rows, config.hidden_size, form)
        self.mixed = Inputs.of(rows, query, form)
        self.inner = Inputs.of(rows, config.intermediate_size, form)
        self.final = Inputs.of(LOGIT_ROWS, config.hidden_size, form)


def stride(tensor: torch.Tensor) -> int:
    """Bytes from a row to the next one."""
    return tensor.stride(0) * tensor.itemsize


def _large_group(size: int) -> int:
    return next(group for group in range(LARGE_GROUP, 0, -GROUP) if size % group == 0)


def _whole(columns: int) -> int:
    return -(-columns // CHUNK) * CHUNK
