"""The command line against a scripted server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.sdk import answers
from tests.unit.sdk.scripted import ScriptedServer
from typer.testing import CliRunner, Result

from argosy_services.cli.app import app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ARGOSY_ADDRESS", "ARGOSY_API_KEY", "ARGOSY_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARGOSY_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.answers.update(answers.everything())
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def run(server: ScriptedServer) -> Run:
    """Runs the command against the scripted server; `input` is what standard input holds."""

    def invoke(*arguments: str, input: str | None = None) -> Result:
        return CliRunner().invoke(app, ["--address", server.address, *arguments], input=input, prog_name="argosy")

    return invoke


def words(text: str) -> list[list[str]]:
    """The words of each line, without the spaces of tables."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
