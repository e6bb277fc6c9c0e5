"""Adapters in the engine and how a mixed batch is computed with them (idea: Punica, S-LoRA: one base product for all
rows, then each adapter's low-rank product for its own rows)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.lora.reader import LoraWeights
from argosy_services.engine.torch_engine.step import Work
from argosy_services.errors import ArgosyError, Reason


class AdapterSlots:
    """The adapters that are in the engine, by key. Lives on the engine's thread."""

    prepared = LoraWeights

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._adapters: dict[str, LoraWeights] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._adapters

    def __len__(self) -> int:
        return len(self._adapters)

    def prepare(self, weights: LoraWeights) -> LoraWeights:
        """What `put` takes; here the weights as they are."""
        return weights

    def put(self, key: str, adapter: LoraWeights) -> None:
        """Takes a slot. Raises ADAPTER_SLOTS_FULL."""
        if len(self._adapters) >= self._limit:
            raise slots_full(self._limit)
        self._adapters[key] = adapter

    def drop(self, key: str) -> None:
        """Frees a slot; a key that has none is ignored."""
        self._adapters.pop(key, None)

    def of_batch(self, work: Sequence[Work], device: torch.device) -> BatchAdapters:
        """The adapters of one step's rows."""
        rows: dict[str, list[int]] = {}
        row = 0
        for item in work:
            if item.sequence.request.adapter is not None:
                rows.setdefault(item.sequence.request.adapter, []).extend(range(row, row + item.count))
            row += item.count
        groups = [
            _Group(self._adapters[key], None if len(indices) == row else torch.tensor(indices, device=device))
            for key, indices in rows.items()
        ]
        return BatchAdapters(groups)


class Promises:
    """Which adapters were promised a slot. For any thread, while the slots themselves are for the engine's.

    The engine takes commands in order: a sequence that is submitted after a promise finds the adapter, and nobody has
    to wait for the end of a step.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: set[str] = set()
        self._lock = threading.Lock()

    def give(self, key: str) -> None:
        """Raises ADAPTER_SLOTS_FULL."""
        with self._lock:
            if len(self._keys) >= self._limit:
                raise slots_full(self._limit)
            self._keys.add(key)

    def take_back(self, key: str) -> None:
        """Once the slot is free. A key without a promise is ignored."""
        with self._lock:
            self._keys.discard(key)


def slots_full(limit: int) -> ArgosyError:
    """No adapter more fits into the engine."""
    return ArgosyError(
        Reason.ADAPTER_SLOTS_FULL,
        f"all {limit} adapter slots are taken; unload an adapter first",
        limit=limit,
        retry_after_s=5.0,
    )


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows of one adapter; None means all rows of the batch."""

    weights: LoraWeights
    rows: torch.Tensor | None


class BatchAdapters:
    """Adds each adapter's product to its rows; see `models.decoder.Adapters`."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        self._groups = groups

    def add(self, modules: Sequence[str], states: torch.Tensor, outs: Sequence[torch.Tensor]) -> None:
        """See `models.decoder.Adapters`."""
        for group in self._groups:
            for module, out in zip(modules, outs, strict=True):
                pair = group.weights.modules.get(module)
                if pair is None:
                    continue
                if group.rows is None:
                    out.add_((states @ pair.a.T) @ pair.b.T)
                else:
                    out.index_add_(0, group.rows, (states[group.rows] @ pair.a.T) @ pair.b.T)
