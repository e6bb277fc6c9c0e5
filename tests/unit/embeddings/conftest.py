"""The real embedding model, and a directory to spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argosy_services.embeddings.encoder import Encoder
from argosy_services.models.types import LocalModel

SpoilModel = Callable[..., LocalModel]


@pytest.fixture(scope="session")
def encoder(minilm: LocalModel) -> Encoder:
    return Encoder.load(minilm)


@pytest.fixture
def spoil(minilm: LocalModel, tmp_path: Path) -> SpoilModel:
    """A copy of the model in which some keys of some JSON files have other values (None: the key or file is gone)."""

    def make(**files: dict[str, Any] | list[Any] | None) -> LocalModel:
        shutil.copytree(minilm.path, tmp_path, dirs_exist_ok=True, copy_function=_link)
        for name, changes in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
            if isinstance(changes, dict):
                content = {key: value for key, value in {**content, **changes}.items() if value is not None}
                path.write_text(json.dumps(content), encoding="utf-8")
            elif changes is not None:
                path.write_text(json.dumps(changes), encoding="utf-8")
        return LocalModel("spoiled", "file://", tmp_path, fingerprint="0" * 64, size_bytes=0)

    return make


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)
