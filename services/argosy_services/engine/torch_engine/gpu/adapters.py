"""Adapters in memory that stays where it is, so that a captured step finds whichever are loaded by their slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.gpu.kernels import RANK_TILE, Factors, Kernels
from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots, BatchAdapters
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.step import Work


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """A validated adapter (`engine.base.AdapterWeights`) as the content of a slot, `[numbers]` on the device; `paths`
    are the modules that it changes."""

    version: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    paths: tuple[str, ...]
    content: torch.Tensor


class GpuAdapters:
    """The adapters that are in the engine. `prepare` is for any thread, the rest for the engine's.

    Each slot has room for an adapter of the largest rank on every projection. Decoding rows find the factors by slot
    (`of_rows`), pieces of prompts by key (`of_batch`).
    """

    prepared = PlacedAdapter

    def __init__(
        self, limit: int, max_rank: int, config: DecoderConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._held = AdapterSlots(limit)
        self._slots: dict[str, int] = {}
        self._free = list(range(limit - 1, -1, -1))
        self._rank = -(-max_rank // RANK_TILE) * RANK_TILE
        self._shapes = adaptable(config)
        self._size = self._rank * sum(outputs + inputs for outputs, inputs in self._shapes.values())
        self._memory = torch.zeros(limit, self._size, dtype=dtype, device=device)
        self._ranks = torch.zeros(limit, dtype=torch.int32, device=device)
        self._factors = self._views(self._memory)
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def prepare(self, weights: LoraWeights) -> PlacedAdapter:
        """Lays an adapter out as a slot has it, and sends it to the device without holding up the engine's work."""
        content = torch.zeros(1, self._size, dtype=self._dtype)
        views = self._views(content)
        for path, pair in weights.modules.items():
            rank = pair.a.shape[0]
            views[path].a[0, :rank] = pair.a
            views[path].b[0, :, :rank] = pair.b
        return PlacedAdapter(
            weights.version,
            weights.rank,
            weights.target_modules,
            weights.size_bytes,
            tuple(weights.modules),
            self._send(content[0]),
        )

    def put(self, key: str, adapter: PlacedAdapter) -> None:
        """Takes a slot: one copy within the device. Raises ADAPTER_SLOTS_FULL."""
        rank = adapter.rank
        slot = self._free[-1] if self._free else 0
        pairs = {
            path: LoraPair(self._factors[path].a[slot, :rank], self._factors[path].b[slot, :, :rank])
            for path in adapter.paths
        }
        self._held.put(key, LoraWeights(adapter.version, rank, adapter.target_modules, adapter.size_bytes, pairs))
        self._slots[key] = self._free.pop()
        if self._uploads is not None:
            adapter.content.record_stream(torch.cuda.current_stream(self._device))
        self._memory[slot] = adapter.content
        self._ranks[slot] = rank

    def drop(self, key: str) -> None:
        """Frees a slot; a key that has none is ignored."""
        self._held.drop(key)
        if key in self._slots:
            self._free.append(self._slots.pop(key))

    def slot(self, work: Work) -> int:
        """The slot of a sequence's adapter, -1 without one."""
        key = work.sequence.request.adapter
        return -1 if key is None else self._slots[key]

    def of_rows(self, slots: torch.Tensor, kernels: Kernels) -> RowAdapters:
        """The adapters of rows by their `slots`, int64 `[rows]`."""
        return RowAdapters(self._factors, slots, self._ranks, kernels)

    def of_batch(self, work: Sequence[Work]) -> BatchAdapters:
        """The adapters of pieces of prompts."""
        return self._held.of_batch(work, self._device)

    def _views(self, memory: torch.Tensor) -> dict[str, Factors]:
        """Each module's factors in `memory` `[slots, numbers]`."""
        views: dict[str, Factors] = {}
        slots, place, rank = len(memory), 0, self._rank
        for path, (outputs, inputs) in self._shapes.items():
            middle, end = place + rank * inputs, place + rank * (inputs + outputs)
            views[path] = Factors(
                memory[:, place:middle].view(slots, rank, inputs), memory[:, middle:end].view(slots, outputs, rank)
            )
            place = end
        return views

    def _send(self, content: torch.Tensor) -> torch.Tensor:
        if self._uploads is None:
            return content
        with torch.cuda.stream(self._uploads):
            sent = content.pin_memory().to(self._device, non_blocking=True)
        self._uploads.synchronize()
        return sent


class RowAdapters:
    """Adds each row's product by its slot; see `models.decoder.Adapters`."""

    def __init__(self, factors: dict[str, Factors], slots: torch.Tensor, ranks: torch.Tensor, kernels: Kernels) -> None:
        self._factors = factors
        self._slots = slots
        self._ranks = ranks
        self._kernels = kernels

    def add(self, module: str, states: torch.Tensor, out: torch.Tensor) -> None:
        """Adds to `out` in place, which may be a view into a fused projection's output."""
        self._kernels.add_low_rank(states, out, self._factors[module], self._slots, self._ranks)


class NoAdapters:
    """Rows without any; see `models.decoder.Adapters`."""

    def add(self, module: str, states: torch.Tensor, out: torch.Tensor) -> None:
        """Nothing to add."""
