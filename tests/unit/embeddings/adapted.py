"""An embeddings service with adapters, whose leases a test gives and revokes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from argosy_services.embeddings.adapters import EncoderAdapters
from argosy_services.embeddings.encoder import Encoder
from argosy_services.embeddings.service import EmbeddingsService
from argosy_services.errors import adapter_not_found
from argosy_services.leases import Lease

RANK = 4


def write_adapter(directory: Path, seed: int, modules: tuple[str, ...] = ("query", "value"), layers: int = 6) -> Path:
    """A PEFT adapter of all-MiniLM-L6-v2."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (384, 384), "value": (384, 384), "dense": (1536, 384)}
    paths = {"query": "attention.self.query", "value": "attention.self.value", "dense": "intermediate.dense"}
    tensors = {}
    for layer in range(layers):
        for module in modules:
            out, size = shapes[module]
            path = f"base_model.model.encoder.layer.{layer}.{paths[module]}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, size, generator=generator) * 0.1
            tensors[f"{path}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.1
    targets = [paths[module] for module in modules]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets, "bias": "none"}
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


class Leases:
    """Gives leases of adapters by name; counts who holds one."""

    def __init__(self, base_model: str) -> None:
        self.known: dict[str, Lease] = {}
        self.held = 0
        self.revoke: Callable[[], None] = lambda: None
        self._base_model = base_model

    def know(self, name: str, *, base_model: str = "") -> str:
        """From now on there is this adapter; gives its key."""
        self.known[name] = Lease(name, f"{name}@1", f"version of {name}", base_model or self._base_model)
        return self.known[name].key

    @asynccontextmanager
    async def lease(self, name: str, on_revoke: Callable[[], None], sticky_key: str = "") -> AsyncIterator[Lease]:
        if name not in self.known:
            raise adapter_not_found(name)
        self.held += 1
        self.revoke = on_revoke
        try:
            yield self.known[name]
        finally:
            self.held -= 1


@contextmanager
def running(encoder: Encoder, **limits: int) -> Iterator[tuple[EmbeddingsService, EncoderAdapters, Leases]]:
    """A service that works, its adapters and its leases."""
    adapters, leases = EncoderAdapters(encoder, max_rank=16), Leases(encoder.info.name)
    service = EmbeddingsService(
        [encoder], leases, adapters, **{"max_batch_tokens": 1024, "max_waiting_texts": 4096, **limits}
    )
    service.start()
    try:
        yield service, adapters, leases
    finally:
        service.close()
        adapters.close()
