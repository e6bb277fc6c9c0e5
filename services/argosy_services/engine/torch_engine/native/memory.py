"""Large pieces of memory."""

from __future__ import annotations

import mmap

import torch


def zeroed(size: int) -> torch.Tensor:
    """Zeros, uint8 `[size]`, aligned to a page, that the system gives as they are touched, in large pages."""
    # Private: memory that could be shared gets no large pages unless the system is told so.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
