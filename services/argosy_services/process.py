"""What a process that serves does to itself: before anything imports torch, and when everything is loaded."""

from __future__ import annotations

import gc
import os


def begin() -> None:
    """Before torch is imported; processes that are started from here inherit it."""
    # How often an idle thread of a step looks again before it sleeps. By default it does so for milliseconds, which
    # steals the time of others where cores are few; not at all makes each of a step's many products wait for a wake-up.
    # GNU's OpenMP reads this once, when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def loaded() -> None:
    """When all that stays until the end is there. Takes a tenth of a second."""
    # Looking for garbage among it takes as long, with all threads held up: amid streams it would be a gap in each.
    gc.collect()
    gc.freeze()
