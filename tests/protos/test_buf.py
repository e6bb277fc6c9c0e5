"""The schema's own rules: form, comments, and nothing that breaks callers of the last release."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUF = Path(sysconfig.get_path("scripts")) / "buf"


def run(*command: str | Path, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_the_schema_keeps_its_rules_and_comments_everything() -> None:
    result = run(BUF, "lint", directory=ROOT / "protos")
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_uncommented_field_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "buf.yaml").write_text((ROOT / "protos/buf.yaml").read_text())
    directory = tmp_path / "argosy/api/common/v1"
    directory.mkdir(parents=True)
    text = (ROOT / "protos/argosy/api/common/v1/usage.proto").read_text()
    lines = text.splitlines()
    field = next(number for number, line in enumerate(lines) if line.strip().endswith("= 1;"))
    (directory / "usage.proto").write_text("\n".join(lines[: field - 1] + lines[field:]))
    result = run(BUF, "lint", directory=tmp_path)
    assert "COMMENT_FIELD" in result.stdout + result.stderr or "should have a non-empty comment" in result.stdout


def test_nothing_breaks_callers_of_the_last_release() -> None:
    tags = run("git", "tag", "--list", "v*", "--sort=-version:refname", "--merged", directory=ROOT).stdout.split()
    if not tags:
        pytest.skip("no release is tagged yet, so there is nothing to be compatible with")
    result = run(BUF, "breaking", "protos", "--against", f".git#tag={tags[0]},subdir=protos", directory=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
