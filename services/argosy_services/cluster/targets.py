"""Where Prometheus finds the pages of this machine's replicas: a file for each, that outlives no process for long.

A lock on the file says that its process lives. What a killed one left behind is removed by the next that starts:
Prometheus would take it for a replica that is down, and, once its port is used again, for one that has two names.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Target:
    """The file of this process."""

    def __init__(self, directory: Path, name: str, address: str, labels: Mapping[str, str]) -> None:
        """Writes it and removes those of dead processes. `name` is no other process's. Blocks."""
        directory.mkdir(parents=True, exist_ok=True)
        # Machines may share the directory, and not all file systems have locks that others see.
        suffix = f"@{socket.gethostname()}.json"
        for file in directory.glob(f"*{glob.escape(suffix)}"):
            _remove_if_dead(file)
        draft = directory / f".{name}"
        self._lock = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with suppress(OSError):  # Without locks no file is ever taken for a dead process's.
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.write(self._lock, json.dumps([{"targets": [address], "labels": dict(labels)}]).encode())
        # Written and locked before it gets the name that others look for.
        self._file = draft.rename(directory / f"{name}{suffix}")

    def withdraw(self) -> None:
        """Removes it."""
        self._file.unlink(missing_ok=True)
        os.close(self._lock)


def _remove_if_dead(file: Path) -> None:
    try:
        lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # another process was quicker, or it is none of ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
    except OSError:
        return  # its process lives, or the file system cannot tell
    finally:
        os.close(lock)
