"""Where adapters may come from, and how their files get onto this machine without trusting anybody.

A source is accepted by its form and its place before anything of it is opened. Its two files are then copied into a
private directory, through directory handles that follow no link, so that whatever happens to the source between the
check and the copy, or after it, cannot lead anywhere else nor change what was loaded.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from argosy_services.errors import ArgosyError, Reason

FILES = ("adapter_config.json", "adapter_model.safetensors")
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
SCHEME = "file://"
_MAX_LENGTH = 4_096
_CHUNK_BYTES = 1 << 20
# Percent-encoding, queries, fragments, backslashes and control characters: everything that readers of URIs disagree on.
_REFUSED_CHARACTERS = re.compile(r"[%?#\\\x00-\x1f\x7f]")


class FetchCancelled(Exception):  # noqa: N818 - not a failure
    """The adapter was unloaded while its files were being copied."""


@dataclass(frozen=True, slots=True)
class SourceDirectory:
    """An accepted source: `relative` names a directory below `root`, both without links."""

    uri: str
    root: Path
    relative: Path


class AdapterSources:
    """Accepts `file://` sources below one of `roots` and copies at most `max_size_bytes` from each."""

    def __init__(self, roots: Sequence[Path], max_size_bytes: int) -> None:
        self._roots = tuple(roots)
        self._max_size_bytes = max_size_bytes

    def resolve(self, source: str) -> SourceDirectory:
        """The directory that a source means. Looks at the file system, so it blocks.

        Raises SOURCE_REFUSED. A directory that is not there is accepted: fetching it fails.
        """
        path = _path_of(source)
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise refused(source, "leads through links that end nowhere") from error
        for root in self._roots:
            real_root = root.resolve()
            if real_root in real.parents:
                return SourceDirectory(SCHEME + str(path), real_root, real.relative_to(real_root))
        raise refused(
            source,
            "is not below one of the server's adapter roots; put the adapter there, or have the operator add its place "
            "to the setting adapters.roots",
        )

    def fetch(self, source: SourceDirectory, target: Path, cancelled: threading.Event) -> None:
        """Copies the files of an adapter into `target`, which must be empty. Blocks.

        Raises ADAPTER_INVALID where files are missing, no regular files or too large, and FetchCancelled.
        """
        with _opened(source) as directory:
            left = self._max_size_bytes
            for name in FILES:
                with _opened_file(directory, name) as file:
                    left -= copy_bounded(_reading(file), target / name, left, self._max_size_bytes, cancelled)


def copy_bounded(
    read: Callable[[int], bytes | memoryview], target: Path, left: int, limit: int, cancelled: threading.Event
) -> int:
    """Writes what `read` gives into a new file, at most `left` bytes of a whole of `limit`; returns how many it were.

    Bytes are counted as they come: the size that a file had when it was opened binds nobody. Raises ADAPTER_INVALID
    and FetchCancelled.
    """
    copied = 0
    with target.open("xb") as out:
        while chunk := read(_CHUNK_BYTES):
            if cancelled.is_set():
                raise FetchCancelled
            copied += len(chunk)
            if copied > left:
                raise invalid_adapter(f"the adapter has more than {limit} bytes, the largest that is taken")
            out.write(chunk)
    return copied


def _reading(file: int) -> Callable[[int], memoryview]:
    """Reads from a file into the same memory again and again: pages of new memory would cost a fifth of the copy."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    return lambda size: buffer[: os.readv(file, [buffer[:size]])]


def _path_of(source: str) -> Path:
    if len(source) > _MAX_LENGTH:
        raise refused(source, f"has {len(source)} characters, at most {_MAX_LENGTH} are accepted")
    if not source.startswith(SCHEME):
        raise refused(source, "is not supported: write file:// and an absolute directory, or push the adapter")
    text = source.removeprefix(SCHEME)
    if not text.startswith("/"):
        raise refused(source, "names a host or a relative path: write file:/// and an absolute directory")
    if _REFUSED_CHARACTERS.search(text):
        raise refused(source, "holds %, ?, #, a backslash or a control character; write the directory as it is")
    parts = text.removeprefix("/").removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise refused(source, "holds an empty part, '.' or '..'; write the directory without them")
    return Path("/", *parts)


@contextmanager
def _opened(source: SourceDirectory) -> Iterator[int]:
    """The source's directory as a handle, reached from its root step by step so that no step is a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as stack:
        try:
            handle = os.open(source.root, flags)
            stack.callback(os.close, handle)
            for part in source.relative.parts:
                handle = os.open(part, flags, dir_fd=handle)
                stack.callback(os.close, handle)
        except OSError as error:
            raise invalid_adapter(f"the directory {source.uri} cannot be opened: {error.strerror}") from error
        yield handle


@contextmanager
def _opened_file(directory: int, name: str) -> Iterator[int]:
    # Non-blocking: opening a named pipe would wait for its other end.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError as error:
        raise _missing(directory, name) from error
    except OSError as error:
        raise invalid_adapter(
            f"{name} cannot be opened ({error.strerror}); links are not followed, copy the file"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise invalid_adapter(f"{name} is not a regular file")
        yield file
    finally:
        os.close(file)


def _missing(directory: int, name: str) -> ArgosyError:
    pickles = [entry for entry in _PICKLES if entry in os.listdir(directory)]
    if pickles and name == FILES[1]:
        return invalid_adapter(
            f"{pickles[0]} is a pickle, which can run code and is never opened; save the adapter as {name} "
            "(save_pretrained with safe_serialization, the default of PEFT)"
        )
    return invalid_adapter(f"{name} is missing; an adapter is the two files {FILES[0]} and {FILES[1]}")


def invalid_adapter(problem: str) -> ArgosyError:
    """The files of an adapter cannot be served."""
    return ArgosyError(Reason.ADAPTER_INVALID, problem, detail=problem)


def refused(source: str, problem: str) -> ArgosyError:
    """A source is not accepted: `problem` completes the sentence "source ..."."""
    shown = source if len(source) <= 200 else source[:197] + "..."
    return ArgosyError(Reason.SOURCE_REFUSED, f"source {shown!r} {problem}", field="source", value=source)
