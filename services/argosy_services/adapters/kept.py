"""Adapters' files on this machine's disk, for as long as they should be resident, restarts included."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path


class KeptFiles:
    """A directory for each adapter of one database, by the adapter's number there. Every method blocks.

    Processes may share it, on a volume also those of several machines: a directory appears whole, by a rename, and goes
    the same way.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, number: int) -> Path:
        """Where the files of an adapter are, if they are here."""
        return self._root / str(number)

    def keep(self, directory: Path, number: int) -> Path:
        """Takes a directory over; where another process was quicker, its files are the ones that stay."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self.path(number)
        if target.exists():
            shutil.rmtree(directory)
            return target
        try:
            directory.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(directory)
        return target

    def remove(self, number: int) -> None:
        """Removes the files of an adapter, if there are any."""
        going = self._root / f".{number}-{os.getpid()}"
        try:
            self.path(number).rename(going)
        except FileNotFoundError:
            return
        shutil.rmtree(going, ignore_errors=True)  # another process that starts may sweep it away

    def numbers(self) -> set[int]:
        """The adapters that are here."""
        if not self._root.exists():
            return set()
        return {int(entry.name) for entry in self._root.iterdir() if entry.name.isdecimal()}

    def sweep(self, unwanted: Collection[int]) -> None:
        """Removes files of adapters that nobody wants, and what a killed process had begun to remove."""
        for number in unwanted:
            self.remove(number)
        if self._root.exists():
            for entry in self._root.glob(".*-*"):
                shutil.rmtree(entry, ignore_errors=True)  # another process may be about it
