"""Large pieces of memory, in large pages where the system has them."""

from __future__ import annotations

import math
import mmap

import torch

_PIECE = 64 << 20
_LINE = 64
_LARGE_PAGE = 2 << 20


def zeroed(size: int) -> torch.Tensor:
    """Zeros, uint8 `[size]`, aligned to a page, that the system gives as they are touched, in large pages."""
    # Private: memory that could be shared gets no large pages unless the system is told so.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros as torch makes them, in large pages if there are enough to fill one."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE_PAGE:
        return torch.zeros(*shape, dtype=dtype)
    return zeroed(size).view(dtype).view(*shape)


class Shelf:
    """Keeps small tensors side by side in large pages."""

    def __init__(self) -> None:
        self._piece = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of uint8 `[size]`, aligned to a cache line."""
        return self.take(len(tensor)).copy_(tensor)

    def take(self, size: int) -> torch.Tensor:
        """Zeros, uint8 `[size]`, aligned to a cache line."""
        if self._used + size > len(self._piece):
            self._piece, self._used = zeroed(max(_PIECE, size)), 0
        taken = self._piece[self._used : self._used + size]
        self._used += -(-size // _LINE) * _LINE
        return taken
