"""Attention over the paged cache through the kernels: of decoding rows in buffers that stay, of pieces of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.gpu.kernels import Cache, Kernels, Prompts, Scoring
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.models.rope import Turn
from argosy_services.engine.torch_engine.step import Work


class DecodeAttention:
    """One token of each sequence; see `models.decoder.Attention`. Tensors are `[rows]`, `tables` `[rows, width]`."""

    def __init__(
        self,
        config: DecoderConfig,
        pool: KvPool,
        kernels: Kernels,
        *,
        slots: torch.Tensor,
        positions: torch.Tensor,
        tables: torch.Tensor,
    ) -> None:
        self._pool = pool
        self._kernels = kernels
        self._slots = slots
        self._positions = positions
        self._tables = tables
        self._scorings = scorings(config)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, turn: Turn | None
    ) -> torch.Tensor:
        """See `models.decoder.Attention`."""
        cache = cache_of(self._pool, layer)
        query = self._kernels.place(query, key, value, turn=turn, cache=cache, slots=self._slots)
        return self._kernels.attend_decodes(query, cache, self._tables, self._positions, self._scorings[layer])


class PromptAttention:
    """Any number of tokens of each sequence; see `models.decoder.Attention`. Rows are ordered as `work` is."""

    def __init__(
        self, config: DecoderConfig, pool: KvPool, kernels: Kernels, work: Sequence[Work], device: torch.device
    ) -> None:
        self._pool = pool
        self._kernels = kernels
        self._scorings = scorings(config)
        self._slots = torch.from_numpy(np.concatenate([slots_of(item, pool.block_tokens) for item in work])).to(device)
        counts = [item.count for item in work]
        firsts = np.cumsum([0, *counts[:-1]])
        spans = [(first, item.start, item.count) for first, item in zip(firsts.tolist(), work, strict=True)]
        tables = np.zeros((len(work), max(len(item.sequence.table) for item in work)), np.int32)
        for row, item in enumerate(work):
            tables[row, : len(item.sequence.table)] = item.sequence.table
        self._prompts = Prompts(
            tables=torch.from_numpy(tables).to(device),
            spans=torch.tensor(spans, dtype=torch.int32, device=device),
            tasks=torch.tensor(
                kernels.tasks_of(counts, config.group, config.head_dim * pool.keys[0].itemsize),
                dtype=torch.int32,
                device=device,
            ),
        )

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, turn: Turn | None
    ) -> torch.Tensor:
        """See `models.decoder.Attention`."""
        cache = cache_of(self._pool, layer)
        query = self._kernels.place(query, key, value, turn=turn, cache=cache, slots=self._slots)
        return self._kernels.attend_prompts(query, cache, self._prompts, self._scorings[layer])


def cache_of(pool: KvPool, layer: int) -> Cache:
    """A layer's keys and values."""
    return Cache(pool.keys[layer], pool.values[layer], pool.block_tokens)


def scorings(config: DecoderConfig) -> list[Scoring]:
    """How each layer scores."""
    return [Scoring(config.attention_scale, config.attention_softcap, kind.window) for kind in config.layer_kinds]


def slots_of(item: Work, block_tokens: int) -> np.ndarray:
    """Where the new keys and values of one sequence go, int64 `[count]`."""
    places = np.arange(item.start, item.start + item.count)
    return np.array(item.sequence.table, np.int64)[places // block_tokens] * block_tokens + places % block_tokens
