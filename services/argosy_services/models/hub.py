"""Takes models from a Hugging Face hub, or from anything that speaks its protocol."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from argosy_services.models import checkpoint
from argosy_services.models.errors import ChecksumError, DownloadError
from argosy_services.models.progress import Meter, Progress, Stage
from argosy_services.models.sources import HubSource, member_path
from argosy_services.models.staging import Fetched, Staging

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """A file as the hub lists it: large ones by SHA-256, small ones by the identity of their git blob."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None


def fetch(source: HubSource, staging: Staging, report: Progress, *, endpoint: str | None) -> Fetched:
    """Downloads the wanted files of a repository at the commit that the revision means now.

    Files are downloaded one after another in this thread, so that an interrupt stops at once. A connection that
    breaks goes on from the byte it broke at; after a killed pull, the file it was at begins again and the files
    before it are kept (huggingface_hub 2.4 writes each attempt under a new name).
    `endpoint` None takes HF_ENDPOINT, else the public hub. Raises DownloadError, ChecksumError or SourceRefusedError.
    """
    # huggingface_hub speaks httpx or httpx2, depending on its version; this name is the base of both.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    address = endpoint or os.environ.get("HF_ENDPOINT") or None
    try:
        commit, files = _list(source, address)
        total = sum(file.size for file in files)
        staging.require(total, source.uri)
        checkout = staging.downloads / commit
        meter = Meter(report, Stage.DOWNLOADING, total)
        _download(source, commit, files, checkout, endpoint=address, meter=meter)
    except HTTPError as error:
        raise _unreachable(source, error) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _unreachable(source, error) from error
    for file in files:
        _check_blob(file, checkout / file.name, source)
    target = staging.fresh("hub")
    for file in files:
        _link(checkout / file.name, target / file.name)
    return Fetched(target, commit, {file.name: file.sha256 for file in files if file.sha256 is not None})


def _list(source: HubSource, endpoint: str | None) -> tuple[str, list[_RemoteFile]]:
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint).model_info(source.repo_id, revision=source.revision, files_metadata=True)
    except (KeyError, TypeError, ValueError) as error:
        raise DownloadError(f"what answers for {source.uri} is not a hub ({error!r}); check HF_ENDPOINT") from error
    if not _COMMIT.fullmatch(info.sha or ""):
        raise DownloadError(f"the hub names no commit for {source.uri}; check HF_ENDPOINT")
    files = {PurePosixPath(file.name): file for file in _remote_files(info)}
    taken = [files[path] for path in checkpoint.select(files, source.uri)]
    for file in taken:
        member_path(file.name)
    return str(info.sha), taken


def _remote_files(info: ModelInfo) -> Iterator[_RemoteFile]:
    for sibling in info.siblings or ():
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        yield _RemoteFile(sibling.rfilename, sibling.size or 0, sha256, sibling.blob_id)


def _download(
    source: HubSource, commit: str, files: Sequence[_RemoteFile], checkout: Path, *, endpoint: str | None, meter: Meter
) -> None:
    from huggingface_hub import hf_hub_download

    if checkout.exists():
        for leftover in checkout.rglob("*.incomplete"):
            leftover.unlink()  # of a killed pull; every download of the library has a name of its own
    for file in files:
        if (checkout / file.name).exists():
            meter.add(file.size)
        hf_hub_download(
            source.repo_id,
            file.name,
            revision=commit,
            cache_dir=checkout / ".cache",
            local_dir=checkout,
            endpoint=endpoint,
            tqdm_class=_bar(meter),
        )


def _bar(meter: Meter) -> type[Any]:
    from tqdm import tqdm

    class Bar(tqdm):
        """Shows nothing and hands the bytes of a file to the meter."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            meter.add(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, which differ from those of the file where chunks are shared between files."""

    return Bar


def _check_blob(file: _RemoteFile, path: Path, source: HubSource) -> None:
    if file.sha256 is not None or file.blob_id is None:
        return  # large files are hashed once, together with everything else, when the model is sealed
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if digest != file.blob_id:
        raise ChecksumError(f"{file.name} of {source.uri} is not the file that the hub lists; pull again")


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, target)  # file systems without hard links


def _unreachable(source: HubSource, error: Exception) -> DownloadError:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DownloadError(
        f"{source.uri} cannot be downloaded: {' '.join(said[:2]) or type(error).__name__}; check the name, the "
        "revision, the network (HF_ENDPOINT) and, for gated models, HF_TOKEN"
    )
