"""Adapters in the form that the kernel `adapt` reads, and the table by which it finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.lora.reader import LoraWeights
from argosy_services.engine.torch_engine.lora.slots import slots_full
from argosy_services.engine.torch_engine.native.emit import LANES
from argosy_services.engine.torch_engine.native.formats import Format
from argosy_services.engine.torch_engine.native.layout import AdapterField
from argosy_services.engine.torch_engine.native.lora import HEIGHT
from argosy_services.engine.torch_engine.native.memory import zeroed
from argosy_services.engine.torch_engine.native.writer import writer_of
from argosy_services.engine.torch_engine.step import Work

_ADDRESSES = [field for field in AdapterField if field is not AdapterField.RANK]


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
        self._write = writer_of(form.companion)
        self._dtype = torch.float32 if form.companion.name == "float32" else torch.bfloat16
        self._modules = tuple(modules)
        self._adapters: dict[str, tuple[int, PackedAdapter]] = {}
        self._free = list(range(limit - 1, -1, -1))
        self.table = np.zeros((max(1, limit), len(self._modules), len(AdapterField)), np.int64)

    @property
    def modules(self) -> int:
        """How many modules each slot of the table has."""
        return len(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._adapters

    def __len__(self) -> int:
        return len(self._adapters)

    def prepare(self, weights: LoraWeights) -> PackedAdapter:
        """Packs an adapter. The rank of a module is rounded up to whole vectors."""
        width, scale_width = self._write.width, 4 if self._write.scaled else 0
        entries: list[tuple[int, ...]] = []
        factors: list[tuple[int, ...]] = []
        matrices: list[torch.Tensor] = []
        place = 0
        for path in self._modules:
            pair = weights.modules.get(path)
            if pair is None:
                entries.append((place, place, 0, place, place, place))
                continue
            if pair.a.dtype is not self._dtype or pair.b.dtype is not self._dtype:
                raise ValueError(f"{path}: factors of {pair.a.dtype} and {pair.b.dtype}, not {self._dtype}")
            a, b = pair.a.contiguous(), pair.b.contiguous()
            (rank, size), outputs = a.shape, len(b)
            padded = -(-rank // LANES) * LANES
            lengths = (padded * size * width, outputs * padded * width, padded * scale_width, outputs * scale_width)
            down, up, down_scales, up_scales, end = accumulate(lengths, initial=place)
            entries.append((down, up, padded, down_scales, up_scales, end))
            factors.append((a.data_ptr(), down, down_scales, rank, size, size, 1))
            factors.append((b.data_ptr(), up, up_scales, outputs, rank, padded, 1))
            matrices += (a, b)
            place = end
        memory = zeroed(place)
        table, tasks = np.array(entries, np.int64), np.array(factors, np.int64)
        table[:, _ADDRESSES] += memory.data_ptr()
        tasks[:, 1:3] += memory.data_ptr()
        self._write(tasks, self._dtype)
        return PackedAdapter(weights.version, weights.rank, weights.target_modules, place, table, memory)

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
