"""Memory that the system gives in large pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from argosy_services.engine.torch_engine.native.memory import Fresh, Shelf, zeroed, zeros


def mapping_of(address: int) -> dict[str, list[str]]:
    """What the system notes about the mapping that an address lies in."""
    notes: dict[str, list[str]] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside:
            notes[first.removesuffix(":")] = rest
    assert notes, "no such mapping"
    return notes


def present(memory: torch.Tensor) -> int:
    """Bytes of a mapping that the system has given."""
    return int(mapping_of(memory.data_ptr())["Rss"][0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_large_pages_are_asked_for_where_the_system_gives_them() -> None:
    memory = zeroed(4 << 20)
    assert not memory.any()
    assert "sh" not in mapping_of(memory.data_ptr())["VmFlags"], "shared memory has small pages"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_fresh_memory_is_there_before_it_is_written() -> None:
    memory = zeroed((6 << 20) + 4096)
    memory[5 << 20] = 7
    fresh = Fresh(memory)
    # Other tests may have mappings beside this one, which the system then shows as one.
    before = present(memory)
    if not fresh.ask():
        pytest.skip("this system gives memory only as it is written")
    assert [fresh.ask() for _ in range(3)] == [True, True, False]
    assert present(memory) - before >= 2 << 20
    assert memory[5 << 20] == 7
    assert memory.sum() == 7
    assert not fresh.ask()


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
