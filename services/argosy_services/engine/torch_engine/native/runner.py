"""From a step's work to logits on CPU cores; takes the place of `model_runner.ModelRunner`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
from argosy_services.engine.torch_engine.native.attention import HEIGHT
from argosy_services.engine.torch_engine.native.buffers import LOGIT_ROWS
from argosy_services.engine.torch_engine.native.decoder import NativeDecoder
from argosy_services.engine.torch_engine.native.layout import SUPER, TILE, Step
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows


class NativeRunner:
    """Runs a native decoder over scheduled work. Lives on the engine's thread."""

    def __init__(self, decoder: NativeDecoder, block_tokens: int, adapters: NativeAdapters) -> None:
        self._decoder = decoder
        self._adapters = adapters
        self._tiles = block_tokens // TILE
        self._logits = torch.empty(0)
        self._largest: NDArray[np.int64] | None = None

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        """Computes the work, writes its keys and values, and gives the logits float32 `[rows, vocab]` that
        `wanted_rows` names. They are overwritten by the next call."""
        # Rows of one adapter side by side.
        ordered = sorted(work, key=lambda item: item.sequence.request.adapter or "")
        tokens = np.fromiter((token for item in ordered for token in item.token_ids()), np.int64)
        positions = _positions(ordered)
        self._check(tokens, positions)
        slots, tables, tiles = self._places(ordered)
        for name, array in (
            (Step.TOKENS, tokens),
            (Step.POSITIONS, positions),
            (Step.SLOTS, slots),
            (Step.TABLES, tables),
            (Step.TILES, tiles),
        ):
            self._decoder.step[name] = array.ctypes.data
        self._decoder.run_hidden(len(tokens), len(tiles), self._adapters.plan(ordered))
        rows, spans = wanted_rows(ordered)
        self._logits, self._largest = self._compute_logits(np.array(rows, np.int64))
        return self._logits, spans

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest token, int64 `[rows]`; known already where `logits` are, unchanged, what `run` gave last."""
        if logits is self._logits and self._largest is not None:
            return torch.from_numpy(self._largest)
        return logits.argmax(dim=-1)

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

    def _places(self, work: Sequence[Work]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Slots of the new tokens, the tiles of every sequence, and the query vectors of every task; see
        `attention.py`."""
        group = self._decoder.config.group
        tables: list[int] = []
        slots: list[NDArray[np.int64]] = []
        tasks: list[NDArray[np.int64]] = []
        row = 0
        for item in work:
            start, count = item.start, item.count
            table = np.array(item.sequence.table, np.int64)
            if self._tiles > 1:
                table = (table[:, None] * self._tiles + np.arange(self._tiles)).ravel()
            places = np.arange(start, start + count)
            slots.append(table[places // TILE] * TILE + places % TILE)
            vectors = np.arange(0, count * group, HEIGHT)
            part = np.empty((len(vectors), 5), np.int64)
            part[:, 0], part[:, 1], part[:, 2], part[:, 3] = len(tables), row, start, vectors
            part[:, 4] = np.minimum(HEIGHT, count * group - vectors)
            tasks.append(part)
            steps = (start + count - 1) // SUPER + 2
            used = table[: steps * SUPER // TILE].tolist()
            tables += used + [0] * (steps * SUPER // TILE - len(used))
            row += count
        return np.concatenate(slots), np.array(tables, np.int64), np.concatenate(tasks)


def _positions(work: Sequence[Work]) -> NDArray[np.int64]:
    return np.concatenate([np.arange(item.start, item.start + item.count) for item in work])
