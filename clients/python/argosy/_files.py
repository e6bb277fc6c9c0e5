"""The files of a tokenizer, from a stream onto the disk."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO, Self

from argosy.api.tokenization.v1 import tokenization_service_pb2 as rpc
from argosy.errors import ProtocolError

MAX_FILES = 16
MAX_TOTAL_BYTES = 256 << 20
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class TokenizerDownload:
    """Writes the files of a stream into a directory and checks their names, sizes and SHA-256.

    The files appear in the directory, replacing older ones, when `commit` says so; nothing of a failed download stays.
    Raises ProtocolError for what does not fit and OSError where the disk refuses.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.names: list[str] = []
        self._directory = Path(directory)
        self._header: rpc.TokenizerFile | None = None
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._written = 0
        self._announced = 0

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._staging = Path(tempfile.mkdtemp(prefix=".argosy-", dir=self._directory))
        return self

    def __exit__(self, *_raised: object) -> None:
        self._close()
        shutil.rmtree(self._staging)

    def commit(self) -> list[Path]:
        """Moves the complete files to their places and gives those."""
        places = [self._directory / name for name in self.names]
        for place in places:
            (self._staging / place.name).replace(place)
        return places

    def read(self, message: rpc.StreamTokenizerFilesResponse) -> tuple[str, ...]:
        """Takes the next part; the event is the name of the file that it belongs to."""
        kind = message.WhichOneof("event")
        if kind == "file":
            self._open(message.file)
        elif kind == "chunk":
            self._write(message.chunk)
        return () if kind is None else (self.names[-1],)

    def end(self) -> None:
        """The stream is over: the last file must be whole."""
        self._finish()
        if not self.names:
            raise ProtocolError("the server sent no tokenizer files")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, header: rpc.TokenizerFile) -> None:
        self._finish()
        if not _SAFE_NAME.fullmatch(header.name) or header.name in self.names:
            raise ProtocolError(f"the server sent a file with an unusable name: {header.name!r}")
        self._announced += header.size_bytes
        if len(self.names) == MAX_FILES or self._announced > MAX_TOTAL_BYTES:
            raise ProtocolError(f"the server sent more than {MAX_FILES} files or {MAX_TOTAL_BYTES} bytes")
        self.names.append(header.name)
        self._header, self._digest, self._written = header, hashlib.sha256(), 0
        self._file = (self._staging / header.name).open("xb")

    def _write(self, chunk: bytes) -> None:
        if self._file is None or self._header is None:
            raise ProtocolError("the server sent bytes before the name of their file")
        self._written += len(chunk)
        if self._written > self._header.size_bytes:
            raise ProtocolError(f"file {self._header.name} is longer than announced ({self._header.size_bytes} bytes)")
        self._digest.update(chunk)
        self._file.write(chunk)

    def _finish(self) -> None:
        self._close()
        if self._header is None:
            return
        if self._written != self._header.size_bytes or self._digest.hexdigest() != self._header.sha256:
            raise ProtocolError(f"file {self._header.name} arrived damaged: its size or SHA-256 is not as announced")
