"""Adapters in the library, which knows them by integer id only and never gives one back.

An id that has stood for one adapter answers with it for ever, whatever path comes with it. So an id belongs to one
version, by the digest of the adapter's files, and is never used for another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from argosy_services.engine.base import AdapterWeights
from argosy_services.engine.tensorrt_llm.checkpoint import LORA_MODULES
from argosy_services.engine.torch_engine.lora.peft_config import invalid
from argosy_services.engine.torch_engine.lora.reader import CONFIG_FILE, read_peft_adapter
from argosy_services.errors import ArgosyError, Reason

# The library scales by alpha / r alone; what its documentation does not promise would be computed wrongly in silence.
_UNPROMISED = ("rank_pattern", "alpha_pattern", "use_rslora")


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A validated adapter (`engine.base.AdapterWeights`); the library itself reads it from `directory`."""

    version: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    directory: Path


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter under its id."""

    lora_id: int
    files: AdapterFiles


def read_adapter(
    directory: Path, *, shapes: Mapping[str, tuple[int, int]], max_rank: int, base_model: str, tensor_parallel_size: int
) -> AdapterFiles:
    """Reads and validates a PEFT adapter as our own engine does. Raises ADAPTER_INVALID or WRONG_BASE_MODEL."""
    weights = read_peft_adapter(
        directory, shapes=shapes, max_rank=max_rank, dtype=torch.bfloat16, base_model=base_model
    )
    options = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    for option in _UNPROMISED:
        if options.get(option):
            raise invalid(
                f"{CONFIG_FILE} sets {option}, which the TensorRT-LLM engine would ignore; use a server with the torch "
                "engine, or train with one rank and alpha for all layers"
            )
    for path in weights.modules:
        if any(size % tensor_parallel_size for size in shapes[path]):
            raise invalid(f"the sizes of layer {path} are no multiples of {tensor_parallel_size} GPUs")
    return AdapterFiles(weights.version, weights.rank, weights.target_modules, weights.size_bytes, directory)


def library_modules(target_modules: tuple[str, ...]) -> list[str]:
    """The library's names of layers, sorted."""
    return sorted(LORA_MODULES[name] for name in target_modules)


class AdapterIds:
    """Which adapter has which id. Used by one thread.

    `slots` bounds the adapters at once, `lifetime` the versions that one instance of the library is given, because it
    keeps every one of them in memory.
    """

    def __init__(self, slots: int, lifetime: int) -> None:
        self._slots = slots
        self._lifetime = lifetime
        self._ids: dict[str, int] = {}
        self._loaded: dict[str, LoadedAdapter] = {}
        self._resident: set[int] = set()
        self._next = 1

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, key: str) -> LoadedAdapter | None:
        """The adapter under a key."""
        return self._loaded.get(key)

    def put(self, key: str, weights: AdapterWeights) -> LoadedAdapter:
        """Takes a place for an adapter. Raises ADAPTER_SLOTS_FULL, and TypeError for another engine's weights."""
        if not isinstance(weights, AdapterFiles):
            raise TypeError(f"these weights were read by another engine: {type(weights).__name__}")
        if len(self._loaded) >= self._slots:
            raise _full(f"{self._slots} adapters are loaded, no more fit; unload one first", self._slots)
        lora_id = self._ids.get(weights.version)
        if lora_id not in self._resident and len(self._resident) >= self._lifetime:
            raise _full(
                f"{self._lifetime} different adapters were loaded since the engine started, and TensorRT-LLM keeps the "
                "memory of each; restart the server",
                self._lifetime,
            )
        if lora_id is None:
            lora_id = self._ids[weights.version] = self._next
            self._next += 1
        self._resident.add(lora_id)
        adapter = self._loaded[key] = LoadedAdapter(lora_id, weights)
        return adapter

    def drop(self, key: str, *, forget: bool = False) -> None:
        """Frees a place; `forget` also has the same version get a new id, as after a failed load."""
        adapter = self._loaded.pop(key, None)
        if adapter is not None and forget:
            self._ids.pop(adapter.files.version, None)

    def library_was_replaced(self) -> None:
        """A new instance of the library holds nothing until adapters are used in it."""
        self._resident = {adapter.lora_id for adapter in self._loaded.values()}


def _full(message: str, limit: int) -> ArgosyError:
    return ArgosyError(Reason.ADAPTER_SLOTS_FULL, message, retry_after_s=5.0, limit=limit, value=limit)
