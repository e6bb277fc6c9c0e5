"""Adapters in the form that the kernel `adapt` reads, and the table by which it finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.lora.slots import slots_full
from argosy_services.engine.torch_engine.native.emit import LANES
from argosy_services.engine.torch_engine.native.gemm import Format
from argosy_services.engine.torch_engine.native.layout import AdapterField
from argosy_services.engine.torch_engine.native.lora import HEIGHT, POINTERS
from argosy_services.engine.torch_engine.native.narrowing import Narrower
from argosy_services.engine.torch_engine.native.packing import lanes
from argosy_services.engine.torch_engine.step import Work


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A validated adapter (`engine.base.AdapterWeights`) and its row of the table, int64 `[modules, fields]`, whose
    addresses lie in `factors`."""

    version: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    entries: NDArray[np.int64]
    factors: torch.Tensor


class NativeAdapters:
    """The adapters that are in the engine, by key. `prepare` is for any thread, the rest for the engine's."""

    prepared = PackedAdapter

    def __init__(self, limit: int, modules: Sequence[str], form: Format) -> None:
        """`modules` are the paths that adapters may change, in the order of the kernel's numbers; `form` is the format
        of the base's weights.
        """
        self._limit = limit
        self._lay = Narrower(form.processor) if form.companion.name == "int8" else _exact
        self._modules = tuple(modules)
        self._adapters: dict[str, tuple[int, PackedAdapter]] = {}
        self._free = list(range(limit - 1, -1, -1))
        self.table = np.zeros((max(1, limit), len(self._modules), len(AdapterField)), np.int64)

    def __contains__(self, key: str) -> bool:
        return key in self._adapters

    def __len__(self) -> int:
        return len(self._adapters)

    def prepare(self, weights: LoraWeights) -> PackedAdapter:
        """Packs an adapter."""
        entries = np.zeros((len(self._modules), len(AdapterField)), np.int64)
        parts: list[torch.Tensor] = []
        place = 0
        for modules in self._alike(weights):
            pairs = [weights.modules[self._modules[index]] for index in modules]
            for field, factors in zip(POINTERS, self._pack(pairs), strict=True):
                entries[modules, field] = place + np.arange(len(modules)) * (factors.numel() // len(modules))
                place += factors.numel()
                parts.append(factors)
            entries[modules, AdapterField.RANK] = _whole_vectors(pairs[0].a.shape[0])
        together = torch.cat(parts)
        entries[:, list(POINTERS)] += together.data_ptr()
        return PackedAdapter(weights.version, weights.rank, weights.target_modules, together.numel(), entries, together)

    def _alike(self, weights: LoraWeights) -> list[list[int]]:
        """The numbers of the modules that an adapter changes, those whose factors have the same shapes together."""
        kinds: dict[tuple[torch.Size, torch.Size], list[int]] = {}
        for index, path in enumerate(self._modules):
            if (pair := weights.modules.get(path)) is not None:
                kinds.setdefault((pair.a.shape, pair.b.shape), []).append(index)
        return list(kinds.values())

    def _pack(self, pairs: Sequence[LoraPair]) -> list[torch.Tensor]:
        """Both factors of modules with the same shapes, and their scales, as bytes: of each all modules in a row,
        because many small tensors take longer than a few large ones. The rank is rounded up to whole vectors.
        """
        (rank, size), outputs = pairs[0].a.shape, pairs[0].b.shape[0]
        rank = _whole_vectors(rank)
        matrices = _stack([pair.a for pair in pairs], rank, size), _stack([pair.b for pair in pairs], outputs, rank)
        laid = [self._lay(matrix) for matrix in matrices]
        return [part.flatten().view(torch.uint8) for parts in zip(*laid, strict=True) for part in parts]

    def put(self, key: str, adapter: PackedAdapter) -> None:
        """Takes a slot. Raises ADAPTER_SLOTS_FULL."""
        if not self._free:
            raise slots_full(self._limit)
        slot = self._free.pop()
        self.table[slot] = adapter.entries
        self._adapters[key] = (slot, adapter)

    def drop(self, key: str) -> None:
        """Frees a slot; a key that has none is ignored."""
        found = self._adapters.pop(key, None)
        if found is not None:
            self.table[found[0]] = 0
            self._free.append(found[0])

    def plan(self, work: Sequence[Work]) -> NDArray[np.int64]:
        """The kernel's tasks, int64 `[tasks, 3]`: first row, rows and slot. The work is sorted by adapter."""
        tasks: list[tuple[int, int, int]] = []
        row = 0
        for key, count in _runs(work):
            if key is not None:
                slot = self._adapters[key][0]
                tasks += [(row + at, min(HEIGHT, count - at), slot) for at in range(0, count, HEIGHT)]
            row += count
        return np.array(tasks, np.int64).reshape(-1, 3)


def _runs(work: Sequence[Work]) -> list[tuple[str | None, int]]:
    """Adapters and how many rows of work in a row have them."""
    runs: list[tuple[str | None, int]] = []
    for item in work:
        key = item.sequence.request.adapter
        if runs and runs[-1][0] == key:
            runs[-1] = (key, runs[-1][1] + item.count)
        else:
            runs.append((key, item.count))
    return runs


def _whole_vectors(rank: int) -> int:
    return -(-rank // LANES) * LANES


def _stack(factors: Sequence[torch.Tensor], outputs: int, size: int) -> torch.Tensor:
    """Of factors with the same shapes one matrix `[factors x outputs, size]`, with zeros for what they lack."""
    together = torch.stack(list(factors))
    missing = (size - together.shape[2], outputs - together.shape[1])
    return pad(together, (0, missing[0], 0, missing[1])).flatten(0, 1)


def _exact(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix `[out, in]` with its outputs in lanes, and the scales that it does not need."""
    return lanes(matrix, 1, 4 // matrix.itemsize), torch.ones(len(matrix))
