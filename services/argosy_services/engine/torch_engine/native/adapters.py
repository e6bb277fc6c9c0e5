"""Adapters in the form that the kernel `adapt` reads, and the table by which it finds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.lora.slots import slots_full
from argosy_services.engine.torch_engine.native.emit import LANES
from argosy_services.engine.torch_engine.native.gemm import FORMATS
from argosy_services.engine.torch_engine.native.layout import AdapterField
from argosy_services.engine.torch_engine.native.lora import HEIGHT, POINTERS
from argosy_services.engine.torch_engine.native.packing import narrow
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

    def __init__(self, limit: int, modules: Sequence[str], form: str) -> None:
        """`modules` are the paths that adapters may change, in the order of the kernel's numbers; `form` is the format
        of the base's weights: the factors have that of their inputs.
        """
        self._limit = limit
        self._form = FORMATS[form].inputs
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
        parts: list[torch.Tensor] = []
        entries = np.zeros((len(self._modules), len(AdapterField)), np.int64)
        place = 0
        for index, path in enumerate(self._modules):
            pair = weights.modules.get(path)
            if pair is None:
                continue
            factors = _pack(pair, self._form)
            starts = np.cumsum([place, *(factor.numel() for factor in factors)])
            entries[index, list(POINTERS)], place = starts[:-1], starts[-1]
            entries[index, AdapterField.RANK] = -(-pair.a.shape[0] // LANES) * LANES
            parts += factors
        together = torch.cat(parts)
        entries[:, list(POINTERS)] += together.data_ptr()
        return PackedAdapter(weights.version, weights.rank, weights.target_modules, together.numel(), entries, together)

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


def _pack(pair: LoraPair, form: str) -> list[torch.Tensor]:
    """Both factors and their scales as bytes, with the rank rounded up to whole vectors."""
    rank = -(-pair.a.shape[0] // LANES) * LANES
    down = pair.a.new_zeros(rank, pair.a.shape[1])
    down[: pair.a.shape[0]] = pair.a
    up = pair.b.new_zeros(pair.b.shape[0], rank)
    up[:, : pair.b.shape[1]] = pair.b
    (down, down_scales), (up, up_scales) = (narrow(factor, form) for factor in (down, up))
    return [_lanes(down), _lanes(up), *(scales.float().view(torch.uint8) for scales in (down_scales, up_scales))]


def _lanes(factor: torch.Tensor) -> torch.Tensor:
    """`[out, in]` with the outputs in lanes, as bytes."""
    together = 4 // factor.itemsize
    lanes = factor.view(-1, LANES, factor.shape[1] // together, together)
    return lanes.permute(0, 2, 1, 3).contiguous().flatten().view(torch.uint8)
