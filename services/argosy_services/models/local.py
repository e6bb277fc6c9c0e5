"""Takes models from this machine's own disk.

A model is copied, not referred to: its files are mapped into memory while it is served, and a file that its owner
rewrites in place would change, or end, a running server.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from argosy_services.models import checkpoint
from argosy_services.models.errors import DownloadError, SourceRefusedError
from argosy_services.models.progress import Meter, Progress, Stage
from argosy_services.models.sources import FileSource
from argosy_services.models.staging import Fetched, Staging

_CHUNK_BYTES = 1 << 20


def fetch(source: FileSource, staging: Staging, report: Progress) -> Fetched:
    """Copies a checkpoint directory, or links a GGUF file for its conversion.

    Raises DownloadError where nothing can be read there and SourceRefusedError for links that leave the directory.
    """
    with _readable(source):
        root = source.path.resolve(strict=True)
        if source.path.suffix == ".gguf":
            return _link(root, staging)
        names = checkpoint.select(_names(root, source.uri), source.uri)
        files = {name: _inside(root / name, root, source.uri) for name in names}
        total = sum(path.stat().st_size for path in files.values())
    staging.require(total, source.uri)
    meter = Meter(report, Stage.COPYING, total)
    target = staging.fresh("copy")
    for name, path in files.items():
        with _readable(source):
            stream = _open_regular(path)
        with stream:
            write_stream(stream, target / name, meter)
    return Fetched(target, None)


def write_stream(stream: BinaryIO, target: Path, meter: Meter) -> None:
    """Writes a stream to a new file, with the directories that it needs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)
            meter.add(len(chunk))


def _link(path: Path, staging: Staging) -> Fetched:
    _open_regular(path).close()
    link = staging.fresh("gguf") / "model.gguf"
    link.symlink_to(path)
    return Fetched(link, None)


@contextmanager
def _readable(source: FileSource) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(f"{source.uri} cannot be read: {error}; check the path and its permissions") from error


def _names(root: Path, origin: str) -> list[PurePosixPath]:
    names: list[PurePosixPath] = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        if links:
            raise SourceRefusedError(
                f"{Path(folder) / links[0]} in {origin} is a link to a directory and is not followed; copy the "
                "checkpoint with `cp -rL` and pull the copy"
            )
        names.extend(PurePosixPath((Path(folder) / name).relative_to(root)) for name in files)
    return names


def _raise(error: OSError) -> None:
    raise error


def _inside(path: Path, root: Path, origin: str) -> Path:
    resolved = path.resolve(strict=True)
    if not resolved.is_relative_to(root):
        raise SourceRefusedError(
            f"{path.name} in {origin} is a link that leaves the directory; copy the checkpoint with `cp -rL` and pull "
            "the copy"
        )
    return resolved


def _open_regular(path: Path) -> BinaryIO:
    """Opens a file that must be neither a link nor a device; a pipe would block for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceRefusedError(f"{path} is not a regular file; name a checkpoint directory or a .gguf file")
    return os.fdopen(descriptor, "rb")
