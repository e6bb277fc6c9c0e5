"""Whether a model on disk is still what its manifest says."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from argosy_services.models.manifest import Manifest, file_names, hash_file
from argosy_services.models.progress import Meter


class Damage(enum.StrEnum):
    """How a file differs from the manifest."""

    MISSING = "is missing"
    SIZE = "has another size"
    CONTENT = "has other content"
    UNEXPECTED = "is not part of the model"


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not what the manifest says; `str()` of it is a sentence."""

    file: str
    damage: Damage

    def __str__(self) -> str:
        return f"{self.file} {self.damage}"


def visible_differences(directory: Path, manifest: Manifest) -> Iterator[Difference]:
    """Files that are missing or have another size; takes one `lstat` a file."""
    for file in manifest.files:
        path = directory / file.name
        if path.is_symlink() or not path.is_file():
            yield Difference(file.name, Damage.MISSING)
        elif path.stat().st_size != file.size:
            yield Difference(file.name, Damage.SIZE)


def all_differences(directory: Path, manifest: Manifest, meter: Meter) -> list[Difference]:
    """Everything that differs, found by hashing every file again."""
    found = list(visible_differences(directory, manifest))
    named = {difference.file for difference in found}
    for file in manifest.files:
        if file.name not in named and hash_file(directory / file.name, meter) != file.sha256:
            found.append(Difference(file.name, Damage.CONTENT))
    known = {file.name for file in manifest.files}
    found.extend(Difference(name, Damage.UNEXPECTED) for name in file_names(directory) if name not in known)
    return found
