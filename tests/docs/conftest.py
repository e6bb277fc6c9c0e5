"""The server that examples talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings, Settings
from argosy_services.testing import run_test_server_in_thread


@pytest.fixture(scope="session")
def address(smollm2: LocalModel, minilm: LocalModel) -> Iterator[str]:
    """Where a server with both bundled models listens."""
    with run_test_server_in_thread(Settings(generation=GenerationSettings(threads=1))) as running:
        yield running.address
