"""Private copies of adapters' files, gone when the process is."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "adapters-"


class AdapterCache:
    """One directory for each adapter, inside a directory that this process alone owns.

    A lock on that directory says that its process lives: what a killed process left behind is removed by the next
    one. Every method blocks on the file system.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._own: Path | None = None
        self._lock: int | None = None

    def open(self) -> None:
        """Removes what dead processes left and makes this process's directory."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._root.glob(f"{_PREFIX}*"):
            _remove_if_dead(entry)
        # Locked before it gets the name that others look for.
        own = Path(tempfile.mkdtemp(prefix=".new-", dir=self._root))
        self._lock = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._own = own.rename(self._root / f"{_PREFIX}{own.name.removeprefix('.new-')}")

    def new_directory(self) -> Path:
        """An empty directory that only this user can read. Raises RuntimeError where the cache is not open."""
        if self._own is None:
            raise RuntimeError("the adapter cache is not open")
        return Path(tempfile.mkdtemp(dir=self._own))

    def remove(self, directory: Path) -> None:
        """Removes a directory that `new_directory` made."""
        shutil.rmtree(directory)

    def close(self) -> None:
        """Removes everything that this process made."""
        if self._own is not None:
            shutil.rmtree(self._own)
            self._own = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_if_dead(directory: Path) -> None:
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # another process was quicker, or it is none of ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    except BlockingIOError:
        return  # its process lives
    finally:
        os.close(lock)
