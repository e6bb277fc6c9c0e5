"""LoRA adapters of an encoder.

An adapter in a slot is a copy of the layers that it changes, with its factors added: texts under an adapter cost what
texts without one do, and a slot the memory of those layers. Texts of different adapters are computed in batches of
their own, which is no loss where calls bring many texts each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import torch

from argosy_services.embeddings.encoder import Encoder
from argosy_services.engine.base import AdapterWeights
from argosy_services.engine.torch_engine.lora.reader import LoraWeights, read_peft_adapter
from argosy_services.leases import adapter_left, adapter_name


class EncoderAdapters:
    """`engine.base.AdapterHost` over an encoder. Every method may be called from any thread."""

    def __init__(self, encoder: Encoder, *, max_rank: int) -> None:
        self._encoder = encoder
        self._max_rank = max_rank
        self._adapted: dict[str, Encoder] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder-adapters")

    def __len__(self) -> int:
        return len(self._adapted)

    def read_adapter(self, directory: Path) -> AdapterWeights:
        """Reads and validates a PEFT adapter for the encoder."""
        return read_peft_adapter(
            directory,
            shapes=self._encoder.shapes,
            max_rank=self._max_rank,
            dtype=torch.float32,
            base_model=self._encoder.info.name,
        )

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """Makes the encoder with this adapter."""
        if not isinstance(weights, LoraWeights):
            raise TypeError(f"these weights were read by another engine: {type(weights).__name__}")
        return self._worker.submit(self._load, key, weights)

    def unload_adapter(self, key: str) -> Future[None]:
        """Forgets the encoder with this adapter; batches that run with it end first."""
        return self._worker.submit(self._unload, key)

    def adapted(self, key: str) -> Encoder:
        """The encoder with an adapter. Raises ADAPTER_NOT_READY where it is in no slot."""
        found = self._adapted.get(key)
        if found is None:
            raise adapter_left(adapter_name(key))
        return found

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[Encoder]:
        """The same as `service.AdaptedEncoders` has it, where a lease keeps the adapter in its slot."""
        yield self.adapted(key)

    def close(self) -> None:
        """Ends the thread. Blocks while it works."""
        self._worker.shutdown()

    def _load(self, key: str, weights: LoraWeights) -> None:
        self._adapted[key] = self._encoder.adapted(weights.modules)

    def _unload(self, key: str) -> None:
        self._adapted.pop(key, None)
