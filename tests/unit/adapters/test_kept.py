"""Files of adapters that several processes share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from argosy_services.adapters.kept import KeptFiles


def test_a_process_that_starts_may_sweep_what_another_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptFiles(tmp_path / "kept")
    (tmp_path / "made").mkdir()
    assert kept.keep(tmp_path / "made", 7).exists()
    real = shutil.rmtree

    def swept_meanwhile(path: Path, ignore_errors: bool = False) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        KeptFiles(tmp_path / "kept").sweep(set())
        real(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", swept_meanwhile)
    kept.remove(7)
    assert kept.numbers() == set()
