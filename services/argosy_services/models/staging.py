"""Where a pull works: beside the models, so that putting a finished one in place is one rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from argosy_services.models.errors import StorageError


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source gave: a checkpoint directory, or a GGUF file that is still to be converted.

    `revision` is what the source resolved to. `sha256` holds digests that the source promises, by file name.
    """

    path: Path
    revision: str | None
    sha256: Mapping[str, str] = field(default_factory=dict)


class Staging:
    """The working directory of one model's pull. Used under the model's lock only.

    `downloads` outlives an interruption and is what the next pull resumes from. Everything else is scratch with a
    name that is never used again, so that a child process of a killed pull cannot write into its successor.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def downloads(self) -> Path:
        """The directory that is kept until the model is in place."""
        downloads = self._path / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        return downloads

    def exists(self) -> bool:
        """Whether a pull is at work or was interrupted."""
        return self._path.exists()

    def fresh(self, purpose: str) -> Path:
        """A new empty directory."""
        self._path.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=self._path))
        path.chmod(0o755)
        return path

    def require(self, size: int, what: str) -> None:
        """Raises StorageError unless so many bytes are free."""
        self._path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._path).free
        if free < size:
            raise StorageError(
                f"{what} needs {size} bytes and {self._path} has {free} left; free some, or set ARGOSY_DATA_DIR to a "
                "larger disk"
            )

    def sweep(self) -> None:
        """Removes the scratch directories, and with nothing downloaded the staging directory itself."""
        if not self._path.exists():
            return
        for entry in self._path.iterdir():
            if entry.name != "downloads" or not any(entry.iterdir()):
                shutil.rmtree(entry)
        if not any(self._path.iterdir()):
            self._path.rmdir()

    def discard_downloads(self) -> None:
        """Removes what was kept for a resumption."""
        shutil.rmtree(self.downloads)

    def remove(self) -> None:
        """Removes everything, downloads included."""
        if self._path.exists():
            shutil.rmtree(self._path)


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turns what the operating system refuses below `root` into StorageError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check the disk and the permissions"
        raise StorageError(
            f"the model store {root} cannot be written: {error}; {remedy}, or set ARGOSY_DATA_DIR to another place"
        ) from error


def sync_directory(path: Path) -> None:
    """Waits until the entries of a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory that another process is writing to."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except FileNotFoundError:
                continue  # the other process has moved it on
    return total
