"""`argosy-engine.json`: what a compiled engine was made from, and what it consists of. It is written last."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from argosy_services.engine.tensorrt_llm.errors import DamagedEngineError
from argosy_services.models.errors import SourceRefusedError
from argosy_services.models.manifest import FileEntry, file_names, fingerprint, hash_file
from argosy_services.models.progress import Meter
from argosy_services.models.sources import member_path

ENGINE_MANIFEST = "argosy-engine.json"

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Build:
    """What an engine is compiled to. `lora_max_rank` 0 is an engine without adapters; lengths are in tokens."""

    quantization: str
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    tensor_parallel_size: int
    lora_max_rank: int
    lora_modules: tuple[str, ...]
    logprobs: bool


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that decides what a compilation gives. `architecture` is as "sm_90", `version` the library's."""

    model: str
    fingerprint: str
    architecture: str
    version: str
    build: Build

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over all of it but the model's name, which may change."""
        content = asdict(self)
        del content["model"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """A finished engine. `hash` is the SHA-256 over the names and digests of its files."""

    key: EngineKey
    hash: str
    files: tuple[FileEntry, ...]

    @property
    def build(self) -> Build:
        return self.key.build

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


def engine_files(directory: Path) -> list[str]:
    """The names of an engine's files, its manifest left out."""
    return [name for name in file_names(directory) if name != ENGINE_MANIFEST]


def describe_engine(directory: Path, key: EngineKey, meter: Meter) -> EngineManifest:
    """Hashes every file of an engine, and brings each to the disk."""
    files = tuple(
        FileEntry(name, (directory / name).stat().st_size, hash_file(directory / name, meter, durable=True))
        for name in engine_files(directory)
    )
    return EngineManifest(key, fingerprint(files), files)


def write_engine_manifest(directory: Path, manifest: EngineManifest) -> None:
    """Writes the manifest and waits until it is on the disk."""
    with (directory / ENGINE_MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT, "digest": manifest.key.digest, **asdict(manifest)}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_engine_manifest(directory: Path) -> EngineManifest | None:
    """The manifest of a directory, None where there is none. Raises DamagedEngineError where it cannot be read."""
    try:
        content = json.loads((directory / ENGINE_MANIFEST).read_text(encoding="utf-8"))
        return _parse(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, SourceRefusedError) as error:
        raise DamagedEngineError(
            f"{directory / ENGINE_MANIFEST} cannot be read ({error}); remove {directory} and compile again"
        ) from error


def check_files(directory: Path, manifest: EngineManifest) -> None:
    """Raises DamagedEngineError unless every file is there with its size; takes milliseconds."""
    for file in manifest.files:
        path = directory / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.size:
            given = "is missing" if size is None else f"has {size} bytes, not {file.size}"
            raise DamagedEngineError(f"{path} {given}; remove {directory} and compile again")


def _parse(content: dict[str, Any]) -> EngineManifest:
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']!r} is not {_FORMAT}")
    given = content["key"]
    build = {field.name: given["build"][field.name] for field in fields(Build)}
    build["lora_modules"] = tuple(build["lora_modules"])
    key = EngineKey(
        **{field.name: given[field.name] for field in fields(EngineKey) if field.name != "build"}, build=Build(**build)
    )
    files = tuple(FileEntry(str(member_path(e["name"])), int(e["size"]), str(e["sha256"])) for e in content["files"])
    if content["digest"] != key.digest:
        raise ValueError("the digest is not that of its contents")
    if fingerprint(files) != content["hash"]:
        raise ValueError("the hash is not that of the files")
    return EngineManifest(key, content["hash"], files)
