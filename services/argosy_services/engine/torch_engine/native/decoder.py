"""A decoder as lists of operations: from token ids to hidden states, with and without adapters, and on to logits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.config import DecoderConfig, RopeConfig
from argosy_services.engine.torch_engine.models.rope import rope_tables
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, Linear
from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
from argosy_services.engine.torch_engine.native.attention import emit_attend
from argosy_services.engine.torch_engine.native.buffers import Buffers, Inputs, stride
from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import Module
from argosy_services.engine.torch_engine.native.formats import Format
from argosy_services.engine.torch_engine.native.gemm import emit_product
from argosy_services.engine.torch_engine.native.heads import Heads
from argosy_services.engine.torch_engine.native.layout import (
    MODULES,
    TILE,
    Adapt,
    Embed,
    Largest,
    Step,
    Tasks,
    unfit,
)
from argosy_services.engine.torch_engine.native.lora import emit_adapt
from argosy_services.engine.torch_engine.native.memory import Fresh, Shelf, zeroed
from argosy_services.engine.torch_engine.native.operations import Operation, Operations
from argosy_services.engine.torch_engine.native.packing import Packed, PackedLayer, pack, pack_layer
from argosy_services.engine.torch_engine.native.rotate import emit_rotate
from argosy_services.engine.torch_engine.native.rows import emit_embed, emit_largest, emit_rows
from argosy_services.engine.torch_engine.native.workers import OperationList, Workers, emit_workers


class NativeDecoder:
    """A decoder whose layers run as machine code. Lives on one thread."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        adapters: NativeAdapters,
        *,
        form: Format,
        max_positions: int,
        max_rows: int,
        slots: int,
        threads: int,
    ) -> None:
        self.config = config
        self.max_rows = max_rows
        self.max_positions = max_positions
        self._form = form
        self._inputs = form.inputs
        self._adapters = adapters
        # Of keys, values and embeddings.
        self._cache_form = "float32" if form.name == "float32" else "bfloat16"
        self.heads = Heads.of(config, self._cache_form, form.processor)
        shelf = Shelf()
        self._layers = [pack_layer(layer, form, shelf) for layer in weights.layers]
        self._head_weights = pack(Linear(weights.head), form.companion, shelf)
        self._final_norm = weights.final_norm.float()
        self._embeddings = weights.embeddings
        self._buffers = Buffers(config, max_rows, form=self._inputs, queries=self.heads.given)
        self._cache = zeroed(slots // TILE * self.heads.stride)
        self._fresh = Fresh(self._cache)
        self._angles = _angles(config, max_positions)
        machine = Machine(compiled(self._emit, f"{form.name} {self.heads} {config.qk_norm}", form.processor))
        self._operations = Operations(machine, inputs=form.inputs, threads=threads)
        self._workers = Workers(machine, threads)
        self._plain = OperationList(self._hidden_operations(adapted=False))
        self._adapted = OperationList(self._hidden_operations(adapted=True))
        self._head = OperationList(self._head_operations())
        self.step = self._operations.new_step()

    def run_hidden(self, rows: int, attention_tasks: int, adapter_tasks: NDArray[np.int64]) -> None:
        """Computes hidden states of a step that has been written into `step`; see `NativeAdapters.plan`."""
        self._operations.prepare(self.step, rows)
        self.step[Tasks.ATTENTION] = attention_tasks
        tasks = len(adapter_tasks)
        self.step[Step.ADAPTED] = adapter_tasks.ctypes.data
        self.step[Tasks.ADAPTED_ONE : Tasks.ADAPTED_ONE + MODULES] = (tasks, 2 * tasks, 3 * tasks)
        self._workers.run(self._adapted if tasks else self._plain, self.step)

    def run_logits(self, rows: NDArray[np.int64]) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Logits float32 `[rows, vocab]` of rows of the last step, at most `LOGIT_ROWS`, and where the largest of each
        is. Both are overwritten by the next call."""
        self.step[Step.CHOSEN] = rows.ctypes.data
        self._operations.prepare(self.step, len(rows))
        self._workers.run(self._head, self.step)
        return self._buffers.logits[: len(rows), : self.config.vocab_size], self._buffers.largest[: len(rows)]

    def settle(self) -> bool:
        """See `Runner`: takes more of the cache's memory from the system."""
        return self._fresh.ask()

    def close(self) -> None:
        """Ends the threads."""
        self._workers.close()

    def _emit(self) -> Module:
        module = Module("decoder", self._form.processor)
        emit_workers(module)
        for form in dict.fromkeys((self._form, self._form.companion)):
            emit_product(module, form)
        emit_rows(module, self._inputs, epsilon=self.config.norm_eps)
        emit_rotate(module, self.heads, normed=self.config.qk_norm)
        emit_attend(module, self.heads)
        emit_embed(module, self._cache_form)
        emit_adapt(module, self._inputs)
        emit_largest(module)
        return module

    def _hidden_operations(self, *, adapted: bool) -> list[Operation]:
        states = self._buffers.states
        embed = Embed.pack(
            table=self._embeddings.data_ptr(),
            out=states.data_ptr(),
            stride=stride(states),
            size=self.config.hidden_size,
        )
        operations = [self._operations.operation("embed", embed, Tasks.ROWS)]
        for index, layer in enumerate(self._layers):
            operations += self._layer(index, layer, adapted=adapted)
        return operations

    def _layer(self, index: int, layer: PackedLayer, *, adapted: bool) -> list[Operation]:
        buffers, config = self._buffers, self.config
        query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
        inner, count = config.intermediate_size, self._adapters.modules // config.layers
        queries = ((0, query, 0), (1, key_value, query), (2, key_value, query + key_value))

        def project(
            packed: Packed, inputs: Inputs, out: torch.Tensor, *modules: tuple[int, int, int], add: bool = False
        ) -> list[Operation]:
            """`modules` are number within the layer, columns and first column."""
            following = {
                "table": self._adapters.table.ctypes.data,
                "table_modules": self._adapters.modules,
                "first_module": index * count + modules[0][0],
                "last_module": index * count + modules[-1][0],
            }
            product = self._operations.product(packed, inputs, out, add=add, adapters=following)
            return [product, self._adapt(index * count, inputs, out, modules)] if adapted else [product]

        return [
            self._operations.rows("norm", buffers.states, buffers.normed, norm=layer.input_norm),
            *project(layer.qkv, buffers.normed, buffers.qkv, *queries),
            *self._attention(index, layer),
            self._operations.rows("plain", buffers.attended, buffers.mixed),
            *project(layer.output, buffers.mixed, buffers.states, (3, config.hidden_size, 0), add=True),
            self._operations.rows("norm", buffers.states, buffers.normed, norm=layer.mlp_norm),
            *project(layer.gate_up, buffers.normed, buffers.gate_up, (4, inner, 0), (5, inner, inner)),
            self._operations.rows("gate", buffers.gate_up, buffers.inner),
            *project(layer.down, buffers.inner, buffers.states, (6, config.hidden_size, 0), add=True),
        ]

    def _attention(self, index: int, layer: PackedLayer) -> list[Operation]:
        buffers = self._buffers
        cache = self._cache.data_ptr() + index * self.heads.layer_bytes
        kind = self.config.layer_kinds[index]
        cosines, sines = self._angles[kind.rope]
        return self._operations.attention(
            buffers.qkv,
            buffers.queries,
            buffers.attended,
            cache=cache,
            cosines=cosines,
            sines=sines,
            window=kind.window,
            norms=(layer.query_norm, layer.key_norm),
        )

    def _head_operations(self) -> list[Operation]:
        buffers = self._buffers
        largest = Largest.pack(
            logits=buffers.logits.data_ptr(),
            stride=stride(buffers.logits),
            size=self.config.vocab_size,
            out=buffers.largest.ctypes.data,
        )
        return [
            self._operations.rows("norm", buffers.states, buffers.final, norm=self._final_norm, chosen=True),
            self._operations.product(self._head_weights, buffers.final, buffers.logits),
            self._operations.operation("largest", largest, Tasks.ROWS),
        ]

    def _adapt(
        self, first: int, inputs: Inputs, out: torch.Tensor, modules: tuple[tuple[int, int, int], ...]
    ) -> Operation:
        """`first` is the layer's first module."""
        numbers = {}
        for place in range(MODULES):
            module, columns, offset = modules[place] if place < len(modules) else (0, 0, 0)
            numbers |= {
                f"module_{place}": first + module,
                f"columns_{place}": columns,
                f"offset_{place}": offset,
            }
        arguments = Adapt.pack(
            inputs=inputs.values.data_ptr(),
            row_bytes=inputs.row_bytes,
            size=inputs.size,
            scales=inputs.scales.data_ptr(),
            offsets=inputs.offsets.data_ptr(),
            out=out.data_ptr(),
            stride=stride(out),
            table=self._adapters.table.ctypes.data,
            table_modules=self._adapters.modules,
            modules=len(modules),
            **numbers,
        )
        return self._operations.operation("adapt", arguments, Tasks.ADAPTED_ONE + len(modules) - 1)


def _angles(config: DecoderConfig, positions: int) -> dict[RopeConfig | None, tuple[torch.Tensor, torch.Tensor]]:
    """Cosines and sines of every position, each float32 `[positions, head_dim / 2]`, by kind of layer."""
    half = config.head_dim // 2
    tables: dict[RopeConfig | None, tuple[torch.Tensor, torch.Tensor]] = {}
    for rope in {kind.rope for kind in config.layer_kinds}:
        if rope is None:
            tables[rope] = torch.ones(positions, half), torch.zeros(positions, half)
        else:
            cosines, sines = rope_tables(rope, config.head_dim, positions, torch.device("cpu"))
            tables[rope] = cosines[:, :half].contiguous(), sines[:, :half].contiguous()
    return tables


def obstacle(config: DecoderConfig, block_tokens: int) -> str | None:
    """Why a decoder cannot be computed natively; None if it can."""
    if not config.plain:
        return f"{config.architecture} computes more in its layers than the kernels do"
    inputs = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads x head_dim": config.heads * config.head_dim,
    }
    if (reason := unfit(inputs, "head_dim", config.head_dim)) is not None:
        return reason
    if block_tokens % TILE:
        return f"generation.block_tokens {block_tokens} is no multiple of {TILE}"
    return None
