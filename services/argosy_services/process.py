"""What a process that serves does to itself: before its threads and torch are there, and when everything is loaded."""

from __future__ import annotations

import ctypes
import gc
import os

_LIBRARY = ctypes.CDLL(None)
_M_ARENA_MAX = -8
ARENAS = 2
"""Heaps that the threads of a server share."""


def begin() -> None:
    """Before threads are started and torch is imported; processes that are started from here inherit a part of it."""
    # How often an idle thread of a step looks again before it sleeps. By default it does so for milliseconds, which
    # steals the time of others where cores are few; not at all makes each of a step's many products wait for a wake-up.
    # GNU's OpenMP reads this once, when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Threads of gRPC, asyncio and the engine come to allocate in eight arenas for each core. Each keeps what its own
    # busiest moment took, and cannot lend it to another: memory grows for hours though nothing is kept.
    if hasattr(_LIBRARY, "mallopt") and not _arenas_are_set():
        _LIBRARY.mallopt(_M_ARENA_MAX, ARENAS)


def loaded() -> None:
    """When all that stays until the end is there. Takes a tenth of a second."""
    # Looking for garbage among it takes as long, with all threads held up: amid streams it would be a gap in each.
    gc.collect()
    gc.freeze()


def _arenas_are_set() -> bool:
    return "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc.arena_max" in os.environ.get("GLIBC_TUNABLES", "")
