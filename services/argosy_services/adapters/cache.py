"""Private copies of adapters' files, gone when the process is."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "adapters-"
_LOCK = "lock"


class AdapterCache:
    """One directory for each adapter, inside a directory that this process alone owns.

    A lock on a file in it says that its process lives: what a killed process left behind is removed by the next one.
    The file is open for writing, because only such locks are seen on other machines that share a volume. Every method
    blocks on the file system.
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
        self._lock = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        if self._lock is not None:
            # Before it is removed: network file systems keep files that are open.
            os.close(self._lock)
            self._lock = None
        if self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)  # from now on another process may be about it
            self._own = None


def _remove_if_dead(directory: Path) -> None:
    if directory.is_symlink() or not directory.is_dir():
        return  # it is none of ours
    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        pass  # somebody began to remove it
    except OSError:
        return  # it is none of ours
    else:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # its process lives
        finally:
            os.close(lock)
    shutil.rmtree(directory, ignore_errors=True)
