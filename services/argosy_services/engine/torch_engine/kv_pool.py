"""The tensors of the key-value cache."""

from __future__ import annotations

import math
import mmap

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig


class KvPool:
    """Keys and values of every layer, each `[kv_heads, slots, head_dim]`; a slot holds one token of one block.

    Head-major, so that a gathered sequence is contiguous for each head and attention is one batched product. Zeroed,
    and written with finite values only, so that any slot can be read (and masked) without poisoning a sum. On a CPU the
    memory is taken from the operating system as it is written: a large cache neither delays the start nor costs what is
    not used.
    """

    def __init__(
        self, config: DecoderConfig, blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.kv_heads, blocks * block_tokens, config.head_dim)
        self.block_tokens = block_tokens
        self.keys = [_zeros(shape, dtype, device) for _ in range(config.layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(config.layers)]

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores `[tokens, kv_heads, head_dim]` at int64 `slots` `[tokens]`; values that are not finite as 0."""
        self.keys[layer].index_copy_(1, slots, key.transpose(0, 1))
        self.values[layer].index_copy_(1, slots, value.nan_to_num(0.0, 0.0, 0.0).transpose(0, 1))

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at int64 `slots` `[n]`, each `[kv_heads, n, head_dim]`."""
        return self.keys[layer].index_select(1, slots), self.values[layer].index_select(1, slots)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Pages that the system gives, and clears, on first use; torch's zeros are written at once.
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A block is a page or so of each tensor: huge pages would have two megabytes cleared for each.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
