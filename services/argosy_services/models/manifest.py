"""`argosy.json`: what a model in the store consists of. It is written last, so its presence means completeness."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from argosy_services.models.errors import DamagedModelError, SourceRefusedError
from argosy_services.models.progress import Meter
from argosy_services.models.sources import member_path

MANIFEST_NAME = "argosy.json"

_FORMAT = 1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a model; `name` is its path below the model's directory, with `/` between the parts."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One model. `revision` is the commit of a hub, the digest of a wheel, or None for a file.

    `fingerprint` is the SHA-256 of what `sha256sum` prints for the files in the order of their names.
    """

    name: str
    source: str
    revision: str | None
    fingerprint: str
    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


def describe(directory: Path, *, name: str, source: str, revision: str | None, meter: Meter) -> Manifest:
    """Hashes every file below a directory, and makes sure that each is on the disk and not only in memory."""
    files = tuple(
        FileEntry(entry, (directory / entry).stat().st_size, hash_file(directory / entry, meter, durable=True))
        for entry in file_names(directory)
    )
    return Manifest(name, source, revision, fingerprint(files), files)


def fingerprint(files: tuple[FileEntry, ...]) -> str:
    """SHA-256 in hexadecimal over the names and digests of files."""
    lines = (f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_names(directory: Path) -> list[str]:
    """The names of everything below a directory that is not a directory, the manifest left out."""
    found = (path.relative_to(directory).as_posix() for path in _walk(directory))
    return sorted(name for name in found if name != MANIFEST_NAME)


def hash_file(path: Path, meter: Meter | None = None, *, durable: bool = False) -> str:
    """SHA-256 of a file in hexadecimal; `durable` also waits until its bytes are on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if durable:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if meter is not None:
                meter.add(len(chunk))
    return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `argosy.json` and waits until it is on the disk."""
    with (directory / MANIFEST_NAME).open("w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, **asdict(manifest)}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a directory, None where there is none. Raises DamagedModelError where it cannot be read."""
    try:
        text = (directory / MANIFEST_NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, SourceRefusedError) as error:
        raise DamagedModelError(
            f"{directory / MANIFEST_NAME} cannot be read ({error}); run `argosy models remove {directory.name}` and "
            "pull the model again"
        ) from error


def _parse(content: dict[str, object]) -> Manifest:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r} is not {_FORMAT}")
    entries = content["files"]
    revision = content["revision"]
    if not isinstance(entries, list):
        raise TypeError("files is not a list")
    files = tuple(FileEntry(str(member_path(e["name"])), int(e["size"]), str(e["sha256"])) for e in entries)
    if fingerprint(files) != content["fingerprint"]:
        raise ValueError("the fingerprint is not that of the files")
    return Manifest(
        name=str(content["name"]),
        source=str(content["source"]),
        revision=None if revision is None else str(revision),
        fingerprint=str(content["fingerprint"]),
        files=files,
    )


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path
