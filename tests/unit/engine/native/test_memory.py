"""Memory that the system gives in large pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from argosy_services.engine.torch_engine.native.memory import Shelf, zeroed, zeros


def flags_of(address: int) -> set[str]:
    """What the system notes about the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return set(rest)
    raise AssertionError("no such mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_large_pages_are_asked_for_where_the_system_gives_them() -> None:
    memory = zeroed(4 << 20)
    assert not memory.any()
    assert "sh" not in flags_of(memory.data_ptr()), "shared memory has small pages"


def test_what_is_kept_stays_apart_and_aligned() -> None:
    shelf = Shelf()
    sizes = (1, 64, 65, 40 << 20, 40 << 20, 70 << 20, 3)
    kept = [shelf.keep(torch.full((size,), number, dtype=torch.uint8)) for number, size in enumerate(sizes)]
    for number, (size, tensor) in enumerate(zip(sizes, kept, strict=True)):
        assert len(tensor) == size
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == number).all()


def test_zeros_of_any_size() -> None:
    for shape in ((3,), (5, 7), (1_000, 1_000)):
        for dtype in (torch.float32, torch.int16):
            made = zeros(*shape, dtype=dtype)
            assert (made.shape, made.dtype) == (shape, dtype)
            assert not made.any()
