"""A decode step in buffers that stay where they are, which CUDA graphs need: whatever changes is data.

A step ends by choosing the likeliest tokens, and the inputs of the next one are made of them on the device, so that it
can be run again before anybody has seen which they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import structlog
import torch

from argosy_services.engine.torch_engine.gpu.adapters import GpuAdapters, NoAdapters
from argosy_services.engine.torch_engine.gpu.attention import DecodeAttention
from argosy_services.engine.torch_engine.gpu.decoder import GpuDecoder
from argosy_services.engine.torch_engine.gpu.kernels import Blocks
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.step import Work

log = structlog.get_logger("argosy.engine")

# Runs of a step before it is captured: kernels compile, and libraries take the memory that they work in.
_WARM_UPS = 2


def captured_sizes(rows: int) -> list[int]:
    """The numbers of rows that have a graph: close together where a row costs most, and `rows` itself."""
    sizes = (1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 1024, 64), *range(1024, rows, 256))
    return [*(size for size in sizes if size < rows), rows]


class Tokens:
    """The likeliest token of each row of a step, on their way to the host."""

    def __init__(self, host: torch.Tensor, sent: torch.cuda.Event | None) -> None:
        self._host = host
        self._sent = sent

    def wait(self) -> torch.Tensor:
        """Int64 `[rows]` in the host's memory, until the step after the next one."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._host


class DecodeStep:
    """Computes one token for each of up to `max_rows` sequences. Lives on the engine's thread.

    A batch is padded to the next size of `captured_sizes`. Rows of the padding are sequences of one token whose keys
    and values go into the pool's last block, `scratch`, which no sequence has.

    `logits` float32 `[max_rows, vocab]` are those of the step that was run last.
    """

    def __init__(
        self, decoder: GpuDecoder, pool: KvPool, adapters: GpuAdapters, *, max_rows: int, max_positions: int
    ) -> None:
        self._decoder = decoder
        self._pool = pool
        self._adapters = adapters
        self._sizes = captured_sizes(max_rows)
        self.scratch = pool.keys[0].shape[1] // pool.block_tokens - 1
        self.max_positions = max_positions
        self.block_tokens = pool.block_tokens
        self._inputs = _Inputs(max_rows, -(-max_positions // pool.block_tokens), decoder.device)
        self.logits = torch.empty(max_rows, decoder.config.vocab_size, device=decoder.device)
        self._likeliest = torch.zeros(max_rows, dtype=torch.int64, device=decoder.device)
        self._last: tuple[int, bool] = (self._sizes[0], False)
        pinned = decoder.device.type == "cuda"
        # Two, for the tokens of one step are read while those of the next are on their way.
        self._chosen = [torch.zeros(max_rows, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}

    @property
    def max_rows(self) -> int:
        """The largest batch."""
        return self._sizes[-1]

    @torch.inference_mode()
    def run(self, work: Sequence[Work]) -> Tokens:
        """Computes work of one token each."""
        size = next(size for size in self._sizes if size >= len(work))
        slots = [self._adapters.slot(item) for item in work]
        self._fill(work, slots, size)
        self._last = size, any(slot >= 0 for slot in slots)
        return self._launch(len(work))

    @torch.inference_mode()
    def again(self, work: Sequence[Work]) -> Tokens:
        """Computes the next token of each row of the last step, `work`, as if the likeliest ones had been chosen. Their
        places must be in the sequences' tables."""
        # The tables first: with the next token a row may come to a block that it has only just got.
        self._inputs.send_tables([item.sequence.table for item in work])
        self._advance(self._last[0])
        return self._launch(len(work))

    def _launch(self, rows: int) -> Tokens:
        graph = self._graphs.get(self._last)
        if graph is None:
            self._compute(*self._last)
        else:
            graph.replay()
        self._chosen.reverse()
        host = self._chosen[0][:rows]
        host.copy_(self._likeliest[:rows], non_blocking=True)
        if self._decoder.device.type != "cuda":
            return Tokens(host, None)
        sent = torch.cuda.Event()
        sent.record()
        return Tokens(host, sent)

    @torch.inference_mode()
    def capture(self, *, with_adapters: bool) -> None:
        """Captures a graph for each size, and one more for batches with adapters, whichever will be loaded then.

        The largest goes first: the graphs run one at a time and share its memory.
        """
        started = time.perf_counter()
        memory = torch.cuda.graph_pool_handle()
        # One for all of them: cuBLAS keeps tens of megabytes for each stream that it has worked on.
        stream = torch.cuda.Stream(self._decoder.device)
        variants = (False, True) if with_adapters else (False,)
        for done, size in enumerate(reversed(self._sizes), 1):
            self._fill((), (), size)
            # Compiled now, and not before the first token of somebody.
            self._advance(size)
            for adapted in variants:
                self._graphs[size, adapted] = self._captured(size, adapted, memory, stream)
            log.info(
                "captured a decode step",
                rows=size,
                done=done,
                of=len(self._sizes),
                seconds=round(time.perf_counter() - started, 1),
            )

    def _captured(self, size: int, adapted: bool, memory: Any, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._compute(size, adapted)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
            self._compute(size, adapted)
        return graph

    def _compute(self, size: int, adapted: bool) -> None:
        inputs, decoder = self._inputs, self._decoder
        tokens, positions, slots, adapter_slots = inputs.numbers[:, :size]
        attention = DecodeAttention(
            decoder.config,
            self._pool,
            decoder.kernels,
            slots=slots,
            positions=positions,
            tables=inputs.tables[:size],
        )
        adapters = self._adapters.of_rows(adapter_slots, decoder.kernels) if adapted else NoAdapters()
        hidden = decoder.hidden(tokens, positions, attention, adapters)
        logits = self.logits[:size]
        logits.copy_(decoder.logits(hidden))
        torch.argmax(logits, dim=-1, out=self._likeliest[:size])

    def _advance(self, size: int) -> None:
        inputs, blocks = self._inputs, Blocks(self.block_tokens, self.scratch)
        self._decoder.kernels.advance(inputs.numbers, inputs.tables[:size], self._likeliest[:size], blocks)

    def _fill(self, work: Sequence[Work], slots: Sequence[int], size: int) -> None:
        block_tokens, padding = self.block_tokens, size - len(work)
        scratch = self.scratch
        positions = [item.start for item in work]
        places = [
            item.sequence.table[item.start // block_tokens] * block_tokens + item.start % block_tokens for item in work
        ]
        self._inputs.fill(
            (
                [item.token_ids()[0] for item in work] + [0] * padding,
                positions + [0] * padding,
                # Each in a slot of its own as far as they go, so that few rows write one place.
                places + [scratch * block_tokens + row % block_tokens for row in range(padding)],
                [*slots] + [-1] * padding,
            ),
            [*(item.sequence.table for item in work), *([scratch] for _ in range(padding))],
        )


class _Inputs:
    """What a step reads: `numbers` int64 `[4, rows]`, which are tokens, positions, slots of the cache and slots of
    adapters, and `tables` int32 `[rows, width]`. Each has its double in the host's memory."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.numbers = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.tables = torch.zeros(rows, width, dtype=torch.int32, device=device)
        self._host_numbers = torch.zeros(4, rows, dtype=torch.int64, pin_memory=pinned)
        self._host_tables = torch.zeros(rows, width, dtype=torch.int32, pin_memory=pinned)
        self._written: list[list[int]] = [[] for _ in range(rows)]
        self._sent = torch.cuda.Event() if pinned else None

    def fill(self, numbers: Iterable[Sequence[int]], tables: Sequence[list[int]]) -> None:
        """Sends a step's inputs; rows beyond them keep what they had."""
        if self._sent is not None:
            # What was sent before may still be on its way.
            self._sent.synchronize()
        size = len(tables)
        into: np.ndarray = self._host_numbers.numpy()
        for row, values in enumerate(numbers):
            into[row, :size] = values
        self.numbers.copy_(self._host_numbers, non_blocking=True)
        self._send(tables)

    def send_tables(self, tables: Sequence[list[int]]) -> None:
        """Sends the tables of the first rows alone."""
        if self._sent is not None:
            self._sent.synchronize()
        self._send(tables)

    def _send(self, tables: Sequence[list[int]]) -> None:
        if self._write(tables):
            self.tables[: len(tables)].copy_(self._host_tables[: len(tables)], non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def _write(self, tables: Sequence[list[int]]) -> bool:
        """Whether a table differs from what its row had."""
        changed = False
        into: np.ndarray = self._host_tables.numpy()
        for row, table in enumerate(tables):
            if table != self._written[row]:
                # A draft model may know fewer positions than its sequences have blocks for.
                known = table[: into.shape[1]]
                into[row, : len(known)] = known
                self._written[row] = list(table)
                changed = True
        return changed
