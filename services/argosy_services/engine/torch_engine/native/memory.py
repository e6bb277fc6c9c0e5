"""Large pieces of memory, in large pages where the system has them."""

from __future__ import annotations

import ctypes
import math
import mmap
import os

import structlog
import torch

log = structlog.get_logger("argosy.engine")

_PIECE = 64 << 20
_LINE = 64
_LARGE_PAGE = 2 << 20
# Of the C library, as Python's own mmap.madvise holds the interpreter's lock meanwhile.
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23


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


class Fresh:
    """Memory of `zeroed`, whose pages are asked for one by one before somebody writes to them.

    A page that the system has at hand costs a fraction of a millisecond. In a virtual machine whose host has to find it
    first it costs several.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self._asked = 0

    def ask(self) -> bool:
        """Has the system give one more large page, whatever is written there already. Whether any is left."""
        left = len(self._memory) - self._asked
        if left <= 0:
            return False
        start = ctypes.c_void_p(self._memory.data_ptr() + self._asked)
        self._asked += _LARGE_PAGE
        if _LIBRARY.madvise(start, ctypes.c_size_t(min(left, _LARGE_PAGE)), _MADV_POPULATE_WRITE):
            # Linux has it since 5.14.
            log.info("memory comes as it is written", because=os.strerror(ctypes.get_errno()))
            self._asked = len(self._memory)
        return self._asked < len(self._memory)
