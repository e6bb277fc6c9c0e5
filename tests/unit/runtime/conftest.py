"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from argosy_services.settings import Settings

from .small_fleet import SmallFleet


@pytest.fixture
def fleet() -> SmallFleet:
    return SmallFleet()


@pytest.fixture
def settings() -> Settings:
    return Settings(port=0, metrics_port=0)
