"""Adapters in memory that stays where it is, so that a captured step finds whichever are loaded by their slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.gpu.kernels import PIECE_ROWS, RANK_TILE, Factors, Kernels
from argosy_services.engine.torch_engine.lora.reader import LoraWeights
from argosy_services.engine.torch_engine.lora.slots import slots_full
from argosy_services.engine.torch_engine.models.decoder import Adapters
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.step import Work

_AddLowRank: TypeAlias = Callable[[torch.Tensor, Sequence[torch.Tensor], Sequence[Factors], torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """A validated adapter (`engine.base.AdapterWeights`) as the content of a slot, `[numbers]` on the device. `ranks`
    int32 `[modules]` are those of each module, 0 for one that it leaves as it is."""

    version: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    ranks: torch.Tensor
    content: torch.Tensor


class GpuAdapters:
    """The adapters that are in the engine. `prepare` is for any thread, the rest for the engine's.

    Each slot has room for an adapter of the largest rank on every projection. Decoding rows find the factors by a
    tensor of slots (`of_rows`), pieces of prompts by the slots of their sequences (`of_batch`).
    """

    prepared = PlacedAdapter

    def __init__(
        self, limit: int, max_rank: int, config: DecoderConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._limit = limit
        self._slots: dict[str, int] = {}
        self._free = list(range(limit - 1, -1, -1))
        self._rank = -(-max_rank // RANK_TILE) * RANK_TILE
        self._shapes = adaptable(config)
        self._size = self._rank * sum(outputs + inputs for outputs, inputs in self._shapes.values())
        self._memory = torch.zeros(limit, self._size, dtype=dtype, device=device)
        self._ranks = torch.zeros(len(self._shapes), limit, dtype=torch.int32, device=device)
        self._factors = self._views(self._memory, self._ranks)
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __contains__(self, key: str) -> bool:
        return key in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def prepare(self, weights: LoraWeights) -> PlacedAdapter:
        """Lays an adapter out as a slot has it, and sends it to the device without holding up the engine's work."""
        content = torch.zeros(1, self._size, dtype=self._dtype)
        ranks = torch.zeros(len(self._shapes), 1, dtype=torch.int32)
        views = self._views(content, ranks)
        for path, pair in weights.modules.items():
            rank = pair.a.shape[0]
            views[path].a[0, :rank] = pair.a
            views[path].b[0, :, :rank] = pair.b
            views[path].ranks[0] = rank
        ranks, content = self._send(ranks[:, 0], content[0])
        return PlacedAdapter(
            weights.version, weights.rank, weights.target_modules, weights.size_bytes, ranks=ranks, content=content
        )

    def put(self, key: str, adapter: PlacedAdapter) -> None:
        """Takes a slot: one copy within the device. Raises ADAPTER_SLOTS_FULL."""
        if key not in self._slots:
            if not self._free:
                raise slots_full(self._limit)
            self._slots[key] = self._free.pop()
        slot = self._slots[key]
        if self._uploads is not None:
            for tensor in (adapter.content, adapter.ranks):
                tensor.record_stream(torch.cuda.current_stream(self._device))
        self._memory[slot] = adapter.content
        self._ranks[:, slot] = adapter.ranks

    def drop(self, key: str) -> None:
        """Frees a slot; a key that has none is ignored."""
        if key in self._slots:
            self._free.append(self._slots.pop(key))

    def slot(self, work: Work) -> int:
        """The slot of a sequence's adapter, -1 without one."""
        key = work.sequence.request.adapter
        return -1 if key is None else self._slots[key]

    def of_rows(self, slots: torch.Tensor, kernels: Kernels) -> Adapters:
        """The adapters of rows by their `slots`, int64 `[rows]`."""
        return _PlacedAdapters(self._factors, kernels.add_low_rank, slots)

    def of_batch(self, work: Sequence[Work], kernels: Kernels) -> Adapters:
        """The adapters of pieces of prompts."""
        pieces: list[tuple[int, int, int]] = []
        row = 0
        for item in work:
            if (slot := self.slot(item)) >= 0:
                firsts = range(0, item.count, PIECE_ROWS)
                pieces += [(row + first, min(PIECE_ROWS, item.count - first), slot) for first in firsts]
            row += item.count
        if not pieces:
            return NoAdapters()
        rows = torch.tensor(pieces, dtype=torch.int32, device=self._device)
        return _PlacedAdapters(self._factors, kernels.add_low_rank_pieces, rows)

    def _views(self, memory: torch.Tensor, ranks: torch.Tensor) -> dict[str, Factors]:
        """Each module's factors in `memory` `[slots, numbers]`, and its row of `ranks` `[modules, slots]`."""
        views: dict[str, Factors] = {}
        slots, place, rank = len(memory), 0, self._rank
        for module, (path, (outputs, inputs)) in enumerate(self._shapes.items()):
            middle, end = place + rank * inputs, place + rank * (inputs + outputs)
            views[path] = Factors(
                memory[:, place:middle].view(slots, rank, inputs),
                memory[:, middle:end].view(slots, outputs, rank),
                ranks[module],
            )
            place = end
        return views

    def _send(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        if self._uploads is None:
            return list(tensors)
        with torch.cuda.stream(self._uploads):
            sent = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
        self._uploads.synchronize()
        return sent


class _PlacedAdapters:
    """Adds the products of those that are in slots; see `models.decoder.Adapters`."""

    def __init__(self, factors: dict[str, Factors], kernel: _AddLowRank, rows: torch.Tensor) -> None:
        """`rows` say to `kernel` which slots they have."""
        self._factors = factors
        self._kernel = kernel
        self._rows = rows

    def add(self, modules: Sequence[str], states: torch.Tensor, outs: Sequence[torch.Tensor]) -> None:
        """See `models.decoder.Adapters`."""
        self._kernel(states, outs, [self._factors[module] for module in modules], self._rows)


class NoAdapters:
    """Rows without any; see `models.decoder.Adapters`."""

    def add(self, modules: Sequence[str], states: torch.Tensor, outs: Sequence[torch.Tensor]) -> None:
        """Nothing to add."""
