"""The blocks of an encoder as machine code, with numbers of 16 bits; the kernels are those of the torch engine.

Texts follow one another without padding. Keys and values go through a cache of tiles as a decoder's do, one layer
after another through the same one.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.embeddings.config import BertConfig
from argosy_services.embeddings.packing import Packed
from argosy_services.embeddings.weights import LayerWeights, Norm
from argosy_services.engine.torch_engine.native import packing
from argosy_services.engine.torch_engine.native.attention import emit_attend, seen_of, tasks_of
from argosy_services.engine.torch_engine.native.buffers import Inputs
from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import Module
from argosy_services.engine.torch_engine.native.formats import Format, format_of
from argosy_services.engine.torch_engine.native.gemm import emit_product
from argosy_services.engine.torch_engine.native.heads import Heads
from argosy_services.engine.torch_engine.native.layout import TILE, Step, Tasks, unfit
from argosy_services.engine.torch_engine.native.memory import Shelf, zeroed, zeros
from argosy_services.engine.torch_engine.native.operations import Operation, Operations
from argosy_services.engine.torch_engine.native.processor import Processor, host
from argosy_services.engine.torch_engine.native.rotate import emit_rotate
from argosy_services.engine.torch_engine.native.rows import ENCODER, emit_rows
from argosy_services.engine.torch_engine.native.workers import OperationList, Workers, emit_workers

# Buffers have room for at least so many tokens.
_LEAST_ROWS = 256


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block; norms are float32 `[2, hidden]`, weights and biases."""

    qkv: packing.Packed
    output: packing.Packed
    attention_norm: torch.Tensor
    up: packing.Packed
    down: packing.Packed
    norm: torch.Tensor


class NativeBlocks:
    """See `bert.Blocks`."""

    def __init__(self, config: BertConfig, layers: Iterable[LayerWeights], processor: Processor | None = None) -> None:
        """`processor` is that of this machine unless it is given."""
        self._form = format_of("int16", processor or host())
        self._desks = _Desks(config, self._form)
        shelf = Shelf()
        self._layers = [self._layer(layer, shelf) for layer in layers]
        self._lists: weakref.WeakKeyDictionary[_Desk, OperationList] = weakref.WeakKeyDictionary()

    def replaced(self, layers: Mapping[int, LayerWeights]) -> NativeBlocks:
        """See `bert.Blocks`."""
        made = copy.copy(self)
        made._layers, made._lists = list(self._layers), weakref.WeakKeyDictionary()
        shelf = Shelf()
        for index, layer in layers.items():
            made._layers[index] = self._layer(layer, shelf)
        return made

    def __call__(self, states: torch.Tensor, packed: Packed, cores: int) -> torch.Tensor:
        """See `bert.Blocks`."""
        with self._desks.take(len(states), cores) as desk:
            operations = self._lists.get(desk)
            if operations is None:
                self._lists[desk] = operations = OperationList(desk.operations_of(self._layers))
            return desk.run(operations, states, packed)

    def _layer(self, layer: LayerWeights, shelf: Shelf) -> _Layer:
        return _Layer(
            qkv=packing.pack(layer.qkv, self._form, shelf),
            output=packing.pack(layer.output, self._form, shelf),
            attention_norm=_stacked(layer.attention_norm),
            up=packing.pack(layer.up, self._form, shelf),
            down=packing.pack(layer.down, self._form, shelf),
            norm=_stacked(layer.norm),
        )


class _Desk:
    """What one batch at a time is computed in: buffers for `rows` tokens, and `cores` threads."""

    def __init__(
        self, config: BertConfig, machine: Machine, heads: Heads, *, inputs: str, rows: int, cores: int
    ) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.rows = rows
        self.cores = cores
        self._heads = heads
        self._operations = Operations(machine, inputs=inputs, threads=cores)
        self._workers = Workers(machine, cores)
        # At the end of the process threads may still be at work, and end by themselves.
        weakref.finalize(self, self._workers.close).atexit = False
        self._states, self._attended, self._queries = (zeros(rows, hidden) for _ in range(3))
        self._qkv, self._up = zeros(rows, 3 * hidden), zeros(rows, inner)
        self._given, self._mixed = (Inputs.of(rows, hidden, inputs) for _ in range(2))
        self._inner = Inputs.of(rows, inner, inputs)
        # In the worst case each token is a text. The first tile belongs to nobody and stays zero.
        self._cache = zeroed((rows + 1) * heads.stride)
        # Positions are in the embeddings: every token is turned by the angle 0.
        self._positions = np.zeros(rows, np.int64)
        self._cosines, self._sines = torch.ones(heads.dim // 2), torch.zeros(heads.dim // 2)

    def operations_of(self, layers: Iterable[_Layer]) -> list[Operation]:
        """What computes these blocks here."""
        write = self._operations
        operations = [write.rows("plain", self._states, self._given)]
        attention = write.attention(
            self._qkv,
            self._queries,
            self._attended,
            cache=self._cache.data_ptr(),
            cosines=self._cosines,
            sines=self._sines,
        )
        for layer in layers:
            operations += [
                write.product(layer.qkv, self._given, self._qkv),
                *attention,
                write.rows("plain", self._attended, self._mixed),
                write.product(layer.output, self._mixed, self._states, add=True),
                write.rows("layer_norm", self._states, self._given, norm=layer.attention_norm),
                write.product(layer.up, self._given, self._up),
                write.rows("gelu", self._up, self._inner),
                write.product(layer.down, self._inner, self._states, add=True),
                write.rows("layer_norm", self._states, self._given, norm=layer.norm),
            ]
        return operations

    def run(self, operations: OperationList, states: torch.Tensor, packed: Packed) -> torch.Tensor:
        """The states that operations of this desk make of `states`."""
        rows = len(states)
        self._states[:rows] = states
        slots, tiles, tasks = _places(packed, self._heads)
        step = self._operations.new_step()
        self._operations.prepare(step, rows)
        step[Tasks.ATTENTION] = len(tasks)
        for name, array in (
            (Step.POSITIONS, self._positions),
            (Step.SLOTS, slots),
            (Step.TABLES, tiles),
            (Step.TILES, tasks),
        ):
            step[name] = array.ctypes.data
        self._workers.run(operations, step)
        return self._states[:rows].clone()


class _Desks:
    """The desks of an encoder and of what adapters make of it: as many as there are batches at once."""

    def __init__(self, config: BertConfig, form: Format) -> None:
        self._config = config
        self._inputs = form.inputs
        self._heads = heads = Heads(
            form="float32",
            given="float32",
            layers=1,
            heads=config.heads,
            kv_heads=config.heads,
            dim=config.head_dim,
            scale=config.head_dim**-0.5,
            epsilon=config.norm_eps,
        )

        def write() -> Module:
            module = Module("encoder", form.processor)
            emit_workers(module)
            emit_product(module, form)
            emit_rows(module, form.inputs, ENCODER, epsilon=config.norm_eps)
            emit_rotate(module, heads, normed=False)
            emit_attend(module, heads, causal=False)
            return module

        self._machine = Machine(compiled(write, f"encoder {form.name} {heads}", form.processor))
        self._lock = threading.Lock()
        self._free: list[_Desk] = []

    @contextmanager
    def take(self, rows: int, cores: int) -> Iterator[_Desk]:
        """A desk for as long as the block runs."""
        with self._lock:
            alike = [desk for desk in self._free if desk.cores == cores]
            desk = next((desk for desk in alike if desk.rows >= rows), None)
            # A larger one is made instead of those that are too small.
            leaving = alike if desk is None else [desk]
            self._free = [desk for desk in self._free if desk not in leaving]
        desk = desk or self._made(rows, cores)
        try:
            yield desk
        finally:
            with self._lock:
                self._free.append(desk)

    def _made(self, rows: int, cores: int) -> _Desk:
        room = max(_LEAST_ROWS, 1 << (rows - 1).bit_length())
        return _Desk(self._config, self._machine, self._heads, inputs=self._inputs, rows=room, cores=cores)


def obstacle(config: BertConfig) -> str | None:
    """Why an encoder cannot be computed with these kernels; None if it can."""
    if not host().reduced:
        return "this processor lacks the AVX2 and FMA instructions"
    sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
    return unfit(sizes, "the size of a head", config.head_dim)


def _stacked(norm: Norm) -> torch.Tensor:
    return torch.stack((norm.weight, norm.bias))


def _places(packed: Packed, heads: Heads) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The slot of each token, the tiles of each text, and the tasks of attention; see `native.attention`."""
    lengths = np.repeat([group.tokens for group in packed.groups], [group.texts for group in packed.groups])
    tiles = -(-lengths // TILE)
    first = 1 + np.cumsum(tiles) - tiles
    slots = np.repeat(first * TILE, lengths) + packed.positions.numpy()
    widths = seen_of(lengths - 1)
    tables = np.cumsum(widths) - widths
    index = np.arange(widths.sum()) - np.repeat(tables, widths)
    listed = np.where(index < np.repeat(tiles, widths), np.repeat(first, widths) + index, 0)
    tasks = tasks_of(heads, tables, np.cumsum(lengths) - lengths, lengths - 1, lengths)
    return slots, listed, tasks
