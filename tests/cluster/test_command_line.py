"""The commands of a fleet on Ray Serve, as a person types them."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from argosy_services.models.types import LocalModel
from argosy_services.settings import Settings

_ARGOSY = Path(sys.executable).with_name("argosy")


@pytest.fixture(scope="module")
def variables(smollm2: LocalModel, minilm: LocalModel) -> dict[str, str]:
    """An environment with ports of its own."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        port, http_port, dashboard_port = (str(probe.getsockname()[1]) for probe in probes)
    return {
        **os.environ,
        "ARGOSY_PORT": port,
        "ARGOSY_ADDRESS": f"127.0.0.1:{port}",
        "ARGOSY_CLUSTER__HTTP_PORT": http_port,
        "ARGOSY_CLUSTER__DASHBOARD_PORT": dashboard_port,
        "ARGOSY_CLUSTER__DRAIN_SECONDS": "5",
        "ARGOSY_LOG_LEVEL": "warning",
    }


def run(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command."""
    return subprocess.run(
        [_ARGOSY, *arguments], env=variables, capture_output=True, text=True, timeout=240, check=False
    )


def test_up_status_generate_down(variables: dict[str, str]) -> None:
    dashboard = f"http://127.0.0.1:{variables['ARGOSY_CLUSTER__DASHBOARD_PORT']}"
    run_dir = Settings().data_dir / "run" / variables["ARGOSY_CLUSTER__DASHBOARD_PORT"]
    nothing = run(variables, "status")
    assert nothing.returncode == 4
    assert "argosy up" in nothing.stderr

    started = run(variables, "up")
    try:
        assert started.returncode == 0, started.stderr
        assert f"127.0.0.1:{variables['ARGOSY_PORT']}" in started.stderr

        # Whoever reaches Ray can run code in it.
        token = run_dir / "token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{dashboard}/api/serve/applications/")
        with refused.value as answer:
            assert answer.code in (401, 403)

        again = run(variables, "up")
        assert again.returncode != 0
        assert "argosy down" in again.stderr

        found = run(variables, "status", "--json")
        assert found.returncode == 0, found.stderr
        states = {state["name"]: state["status"] for state in json.loads(found.stdout)}
        assert states == dict.fromkeys(("adapters", "agents", "embeddings", "generation", "tokenization"), "RUNNING")
        answer = run(variables, "generate", "The sea is", "--max-tokens", "4")
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.strip()
    finally:
        ended = run(variables, "down")
    assert ended.returncode == 0, ended.stderr
    assert not token.exists()
    assert not list(run_dir.glob("metrics/*.json"))
    assert run(variables, "status").returncode == 4


def test_a_model_that_is_missing_is_told_before_anything_starts(variables: dict[str, str]) -> None:
    failed = run({**variables, "ARGOSY_GENERATION__MODEL": "no-such-model"}, "up")
    assert failed.returncode not in (0, 1)
    assert "no-such-model" in failed.stderr
    assert "Traceback" not in failed.stderr
