"""Fleets on Ray Serve that tests may hurt. Each has two engines, so that there is somewhere to go."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import psutil
import pytest

from argosy_services.cluster import local
from argosy_services.models.types import LocalModel
from argosy_services.settings import ClusterSettings, GenerationSettings, Replicas, Settings
from argosy_services.testing import RunningCluster, run_test_cluster


class Start(Protocol):
    """Starts a fleet for the length of a `with` block."""

    def __call__(self, profile: str) -> AbstractContextManager[RunningCluster]: ...


@pytest.fixture(scope="session")
def start(smollm2: LocalModel, minilm: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts fleets in float32, where greedy tokens do not depend on the batch."""

    @contextmanager
    def starting(profile: str) -> Iterator[RunningCluster]:
        settings = Settings(
            generation=GenerationSettings(model=smollm2.name, dtype="float32", kv_cache_tokens=12_288, threads=1),
            embeddings={"model": minilm.name},  # type: ignore[arg-type]
            adapters={"roots": (tmp_path_factory.getbasetemp(),)},  # type: ignore[arg-type]
            cluster=ClusterSettings(
                profile=profile,  # type: ignore[arg-type]
                drain_seconds=30,
                engine=Replicas(min=2, max=2, cpus=0.5),
            ),
            log_level="warning",
        )
        with run_test_cluster(settings) as running:
            yield running

    return starting


class Processes:
    """The processes of one fleet."""

    def __init__(self, fleet: RunningCluster) -> None:
        ray = local.find(fleet.settings)
        assert ray is not None
        self._root = psutil.Process(ray.pid)

    def named(self, beginning: str) -> list[psutil.Process]:
        """Those whose title or program begins like this, in the order in which they were started."""
        found = []
        for process in self._root.children(recursive=True):
            try:
                title = " ".join(process.cmdline())
                if title.startswith(beginning) or process.name().startswith(beginning):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return sorted(found, key=lambda process: process.create_time())

    def kill(self, process: psutil.Process) -> None:
        """What no process can prepare for."""
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=["small", "production"])
def fleet(request: pytest.FixtureRequest, start: Start) -> Iterator[RunningCluster]:
    """A running fleet of each profile."""
    with start(request.param) as running:
        yield running


@pytest.fixture
def processes(fleet: RunningCluster) -> Processes:
    """The fleet's processes, as they are now."""
    return Processes(fleet)
