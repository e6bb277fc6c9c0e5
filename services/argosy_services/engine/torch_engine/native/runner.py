"""From a step's work to logits on CPU cores; takes the place of `model_runner.ModelRunner`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
from argosy_services.engine.torch_engine.native.attention import seen_of, tasks_of
from argosy_services.engine.torch_engine.native.buffers import LOGIT_ROWS
from argosy_services.engine.torch_engine.native.decoder import NativeDecoder
from argosy_services.engine.torch_engine.native.layout import TILE, Step
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows


class NativeRunner:
    """Runs a native decoder over scheduled work. Lives on the engine's thread."""

    def __init__(self, decoder: NativeDecoder, block_tokens: int, adapters: NativeAdapters) -> None:
        self._decoder = decoder
        self._adapters = adapters
        self._block_tokens = block_tokens
        self._logits = torch.empty(0)
        self._largest: NDArray[np.int64] | None = None

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        """Computes the work, writes its keys and values, and gives the logits float32 `[rows, vocab]` that
        `wanted_rows` names. They are overwritten by the next call."""
        # Rows of one adapter side by side.
        ordered = sorted(work, key=lambda item: item.sequence.request.adapter or "")
        tokens = np.fromiter((token for item in ordered for token in item.token_ids()), np.int64)
        counts = np.fromiter((item.count for item in ordered), np.int64)
        starts = np.fromiter((item.start for item in ordered), np.int64)
        positions = np.arange(len(tokens)) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        self._check(tokens, positions)
        slots, tiles, tasks = self._places(ordered, positions, counts)
        for name, array in (
            (Step.TOKENS, tokens),
            (Step.POSITIONS, positions),
            (Step.SLOTS, slots),
            (Step.TABLES, tiles),
            (Step.TILES, tasks),
        ):
            self._decoder.step[name] = array.ctypes.data
        self._decoder.run_hidden(len(tokens), len(tasks), self._adapters.plan(ordered))
        rows, spans = wanted_rows(ordered)
        self._logits, self._largest = self._compute_logits(np.array(rows, np.int64))
        return self._logits, spans

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest token, int64 `[rows]`; known already where `logits` are, unchanged, what `run` gave last."""
        if logits is self._logits and self._largest is not None:
            return torch.from_numpy(self._largest)
        return logits.argmax(dim=-1)

    def settle(self) -> bool:
        """See `Runner`."""
        return self._decoder.settle()

    def close(self) -> None:
        """Ends the decoder's threads."""
        self._decoder.close()

    def _check(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        """Raises ValueError for what would lead the kernels out of their memory; whoever makes work prevents it."""
        decoder = self._decoder
        if len(tokens) > decoder.max_rows:
            raise ValueError(f"a step of {len(tokens)} tokens, at most {decoder.max_rows} have room")
        if tokens.min() < 0 or tokens.max() >= decoder.config.vocab_size:
            raise ValueError(
                f"token ids are from 0 to {decoder.config.vocab_size - 1}, not {tokens.min()} to {tokens.max()}"
            )
        if positions.max() >= decoder.max_positions:
            raise ValueError(f"position {positions.max()}, at most {decoder.max_positions - 1} are known")

    def _compute_logits(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, NDArray[np.int64] | None]:
        if len(rows) <= LOGIT_ROWS:
            return self._decoder.run_logits(rows)
        # Scoring asks for those of whole prompts.
        parts = range(0, len(rows), LOGIT_ROWS)
        return torch.cat([self._decoder.run_logits(rows[part : part + LOGIT_ROWS])[0].clone() for part in parts]), None

    def _places(
        self, work: Sequence[Work], positions: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Slots of the new tokens, the tiles of every sequence, and the query vectors of every task; see
        `attention.py`."""
        rows = np.cumsum(counts) - counts
        starts = positions[rows]
        widths = -(-seen_of(starts + counts - 1) * TILE // self._block_tokens)
        blocks: list[int] = []
        for item, width in zip(work, widths.tolist(), strict=True):
            used = item.sequence.table[:width]
            blocks += used
            blocks += [0] * (width - len(used))
        tiles_of = self._block_tokens // TILE
        tiles = (np.array(blocks, np.int64)[:, None] * tiles_of + np.arange(tiles_of)).ravel()
        tables = (np.cumsum(widths) - widths) * tiles_of
        slots = tiles[np.repeat(tables, counts) + positions // TILE] * TILE + positions % TILE

        return slots, tiles, tasks_of(self._decoder.heads, tables, rows, starts, counts)
