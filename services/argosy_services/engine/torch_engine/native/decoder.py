"""A decoder as two lists of operations: from token ids to hidden states, and from those to logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from llvmlite import ir
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.models.rope import rope_tables
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LayerWeights, Linear
from argosy_services.engine.torch_engine.native.attention import Heads, emit_attend, emit_rotate
from argosy_services.engine.torch_engine.native.compile import Machine
from argosy_services.engine.torch_engine.native.gemm import FORMATS, ROWS, emit_product
from argosy_services.engine.torch_engine.native.layout import (
    GROUP,
    TILE,
    Attend,
    Embed,
    Largest,
    Product,
    Rotate,
    Rows,
    Step,
    Tasks,
)
from argosy_services.engine.torch_engine.native.memory import zeroed
from argosy_services.engine.torch_engine.native.packing import Packed, pack
from argosy_services.engine.torch_engine.native.rows import emit_embed, emit_largest, emit_rows
from argosy_services.engine.torch_engine.native.workers import OperationList, Workers, emit_workers

_COLUMNS = 64
# Rows of logits that are computed at once.
LOGIT_ROWS = 128


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a product takes in: rows in a format's type, with scales and offsets where that has any."""

    values: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, rows: int, size: int, form: str) -> _Inputs:
        kind = {"int8": torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}[form]
        groups = size // GROUP
        return cls(
            torch.zeros(rows, size, dtype=kind),
            torch.zeros(rows, groups),
            torch.zeros(rows, groups, dtype=torch.int32),
        )


class NativeDecoder:
    """A decoder whose layers run as machine code. Lives on one thread, except for `close`."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        form: str,
        max_positions: int,
        max_rows: int,
        slots: int,
        threads: int,
    ) -> None:
        self.config = config
        self.max_rows = max_rows
        self._form = form
        self._cache = "float32" if form == "float32" else "bfloat16"
        self._heads = Heads(
            self._cache, config.layers, config.heads, config.kv_heads, config.head_dim, config.head_dim**-0.5, config.norm_eps
        )
        self._kept: list[object] = []
        self._products: dict[tuple[int, int], int] = {}
        self._machine = Machine(self._emit(weights))
        self._workers = Workers(self._machine, threads)
        self._cosines, self._sines = (table[:, : config.head_dim // 2].contiguous() for table in
                                      rope_tables(config, max_positions, torch.device("cpu")))
        self._buffers(max_rows, slots)
        self._hidden = OperationList(self._hidden_operations(weights))
        self._head = OperationList(self._head_operations(weights))
        self.step = np.zeros(Step.TASKS + len(Tasks) + len(self._products), np.int64)

    def run_hidden(self, rows: int, attention_tasks: int) -> None:
        """Computes hidden states of a step that has been written into `step`."""
        self._prepare(rows, Step.ROWS, Tasks.ROWS)
        self.step[Tasks.ATTENTION] = attention_tasks * self.config.kv_heads
        self._workers.run(self._hidden, self.step)

    def run_logits(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Logits float32 `[rows, vocab]` of rows of the last step, at most `LOGIT_ROWS`, and where the largest of each
        is. Both are overwritten by the next call."""
        self.step[Step.LOGIT_INDICES] = rows.ctypes.data
        self._prepare(len(rows), Step.LOGIT_ROWS, Tasks.LOGIT_ROWS)
        self._workers.run(self._head, self.step)
        return self._logits[: len(rows), : self.config.vocab_size], self._largest[: len(rows)]

    def close(self) -> None:
        """Ends the threads."""
        self._workers.close()

    def _prepare(self, rows: int, rows_slot: int, tasks_slot: int) -> None:
        self.step[rows_slot] = self.step[tasks_slot] = rows
        parts = -(-rows // ROWS)
        for (chunks, slot), tasks in self._products.items():
            if slot == rows_slot:
                self.step[tasks] = chunks * parts

    def _emit(self, weights: DecoderWeights) -> ir.Module:
        module = ir.Module("decoder")
        emit_workers(module)
        emit_product(module, FORMATS[self._form])
        emit_rows(module, self._form, epsilon=self.config.norm_eps)
        emit_rotate(module, self._heads, normed=self.config.qk_norm)
        emit_attend(module, self._heads)
        emit_embed(module, "float32" if weights.embeddings.dtype is torch.float32 else "bfloat16")
        emit_largest(module)
        return module

    def _buffers(self, rows: int, slots: int) -> None:
        config = self.config
        query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
        kind = torch.float32 if self._cache == "float32" else torch.bfloat16
        self._states = torch.zeros(rows, _whole(config.hidden_size))
        self._qkv = torch.zeros(rows, _whole(query + 2 * key_value))
        self._queries = torch.zeros(rows, query, dtype=kind)
        self._attended = torch.zeros(rows, query)
        self._gate_up = torch.zeros(rows, _whole(2 * config.intermediate_size))
        self._normed = _Inputs.of(rows, config.hidden_size, self._form)
        self._mixed = _Inputs.of(rows, query, self._form)
        self._inner = _Inputs.of(rows, config.intermediate_size, self._form)
        self._final = _Inputs.of(LOGIT_ROWS, config.hidden_size, self._form)
        self._logits = torch.zeros(LOGIT_ROWS, _whole(config.vocab_size))
        self._largest = np.zeros(LOGIT_ROWS, np.int64)
        self.cache = zeroed(slots // TILE * self._heads.stride)

    def _hidden_operations(self, weights: DecoderWeights) -> list[tuple[int, list[int], int]]:
        config = self.config
        embed = Embed.pack(
            table=_at(self._keep(weights.embeddings)),
            out=_at(self._states),
            stride=_stride(self._states),
            size=config.hidden_size,
        )
        operations = [(self._machine.address("embed"), embed, int(Tasks.ROWS))]
        for index, layer in enumerate(weights.layers):
            operations += self._layer(index, layer)
        return operations

    def _layer(self, index: int, layer: LayerWeights) -> list[tuple[int, list[int], int]]:
        config = self.config
        window = config.window or 1 << 30
        cache = _at(self.cache) + index * self._heads.layer_bytes
        norms = [None if norm is None else self._keep(norm.float()) for norm in (layer.query_norm, layer.key_norm)]
        rotate = Rotate.pack(
            inputs=_at(self._qkv),
            stride=_stride(self._qkv),
            queries=_at(self._queries),
            cache=cache,
            cosines=_at(self._cosines),
            sines=_at(self._sines),
            query_norm=0 if norms[0] is None else _at(norms[0]),
            key_norm=0 if norms[1] is None else _at(norms[1]),
        )
        attend = Attend.pack(
            queries=_at(self._queries),
            cache=cache,
            out=_at(self._attended),
            stride=_stride(self._attended),
            window=window,
        )
        return [
            self._rows("norm", self._states, self._normed, norm=layer.input_norm),
            self._product(layer.qkv, self._normed, self._qkv),
            (self._machine.address("rotate"), rotate, int(Tasks.ROWS)),
            (self._machine.address("attend"), attend, int(Tasks.ATTENTION)),
            self._rows("plain", self._attended, self._mixed),
            self._product(layer.output, self._mixed, self._states, add=True),
            self._rows("norm", self._states, self._normed, norm=layer.mlp_norm),
            self._product(layer.gate_up, self._normed, self._gate_up),
            self._rows("gate", self._gate_up, self._inner),
            self._product(layer.down, self._inner, self._states, add=True),
        ]

    def _head_operations(self, weights: DecoderWeights) -> list[tuple[int, list[int], int]]:
        largest = Largest.pack(
            logits=_at(self._logits),
            stride=_stride(self._logits),
            size=self.config.vocab_size,
            out=self._largest.ctypes.data,
        )
        norm = self._rows("norm", self._states, self._final, norm=weights.final_norm, chosen=True)
        head = self._product(Linear(weights.head), self._final, self._logits, rows_slot=Step.LOGIT_ROWS)
        return [norm, head, (self._machine.address("largest"), largest, int(Tasks.LOGIT_ROWS))]

    def _rows(
        self, kind: str, source: torch.Tensor, out: _Inputs, *, norm: torch.Tensor | None = None, chosen: bool = False
    ) -> tuple[int, list[int], int]:
        arguments = Rows.pack(
            inputs=_at(source),
            stride=_stride(source),
            norm=0 if norm is None else _at(self._keep(norm.float())),
            size=out.values.shape[1],
            indices_slot=int(Step.LOGIT_INDICES if chosen else Step.NOTHING),
            quantized=_at(out.values),
            scales=_at(out.scales),
            offsets=_at(out.offsets),
            row_bytes=_stride(out.values),
        )
        tasks = Tasks.LOGIT_ROWS if chosen else Tasks.ROWS
        return self._machine.address(f"{kind}_{self._form}"), arguments, int(tasks)

    def _product(
        self, linear: Linear, inputs: _Inputs, out: torch.Tensor, *, add: bool = False, rows_slot: int = Step.ROWS
    ) -> tuple[int, list[int], int]:
        packed: Packed = self._keep(pack(linear, self._form))
        arguments = Product.pack(
            weights=_at(packed.weights),
            weight_scales=_at(packed.scales),
            bias=_at(packed.bias),
            chunk_bytes=packed.chunk_bytes,
            chunks=packed.chunks,
            size=packed.size,
            inputs=_at(inputs.values),
            row_bytes=_stride(inputs.values),
            scales=_at(inputs.scales),
            offsets=_at(inputs.offsets),
            out=_at(out),
            stride=_stride(out),
            accumulate=int(add),
            rows_slot=int(rows_slot),
        )
        next_slot = Tasks.PRODUCTS + len(self._products)
        tasks = self._products.setdefault((packed.chunks, int(rows_slot)), int(next_slot))
        return self._machine.address(f"product_{self._form}"), arguments, tasks

    def _keep(self, thing: object) -> object:
        self._kept.append(thing)
        return thing


def obstacle(config: DecoderConfig, block_tokens: int) -> str | None:
    """Why a decoder cannot be computed natively; None if it can."""
    inputs = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads x head_dim": config.heads * config.head_dim,
    }
    for name, size in inputs.items():
        if size % GROUP:
            return f"{name} {size} is no multiple of {GROUP}"
    if config.head_dim % 32 or (config.head_dim > 64 and config.head_dim % 64):
        return f"head_dim {config.head_dim} is neither 32 nor a multiple of 64"
    if block_tokens % TILE:
        return f"generation.block_tokens {block_tokens} is no multiple of {TILE}"
    return None


def _at(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _stride(tensor: torch.Tensor) -> int:
    return tensor.stride(0) * tensor.itemsize


def _whole(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS
