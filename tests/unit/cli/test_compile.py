"""`argosy compile` on a store with a tiny checkpoint and the stand-in for the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Run
from tests.unit.engine.tensorrt_llm.conftest import control, model  # noqa: F401

from argosy_services.cli.exit_codes import ExitCode
from argosy_services.engine.tensorrt_llm import device
from argosy_services.models.types import LocalModel


@pytest.fixture
def pulled(run: Run, model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    monkeypatch.setattr(device, "architecture", lambda: "sm_90")
    assert run("models", "pull", model.source).exit_code == 0
    return model.name


@pytest.mark.usefixtures("control")
def test_an_engine_is_made_and_found_again(run: Run, pulled: str, tmp_path: Path) -> None:
    """Fails when the directory that is printed is not the engine's, or a second run does not print the same."""
    first = run("compile", pulled, "--gpu", "h200", "--quantization", "fp8", "--lora-max-rank", "8")
    assert first.exit_code == 0, first.stderr
    assert "building the engine" in first.stderr
    directory = Path(first.stdout.split(" in ")[1].strip())
    assert directory.is_relative_to(tmp_path / "data" / "engines" / pulled)
    manifest = json.loads((directory / "argosy-engine.json").read_text())
    assert (manifest["key"]["build"]["quantization"], manifest["key"]["build"]["lora_max_rank"]) == ("fp8", 8)

    again = run("compile", pulled, "--gpu", "h200", "--quantization", "fp8", "--lora-max-rank", "8", "--json")
    assert json.loads(again.stdout)["directory"] == str(directory)
    assert again.stderr == ""


@pytest.mark.usefixtures("control")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--gpu", "gtx"], ExitCode.USAGE, "known: a100"),
        (["--gpu", "a100"], ExitCode.USAGE, "this machine has sm_90"),
        (["--gpu", "h200", "--max-seq-len", "1000"], ExitCode.USAGE, "the model's 256"),
        (["--gpu", "h200", "--quantization", "int3"], ExitCode.USAGE, "int3"),
        ([], ExitCode.USAGE, "--gpu"),
    ],
)
def test_what_cannot_be_compiled(run: Run, pulled: str, arguments: list[str], code: int, words: str) -> None:
    """Fails when a job cannot tell by the exit code that another try is of no use."""
    result = run("compile", pulled, *arguments)
    assert result.exit_code == code
    assert words in result.stderr


def test_without_the_library(run: Run, pulled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when a machine without tensorrt_llm shows a traceback."""
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_llm", None)
    result = run("compile", pulled, "--gpu", "h200")
    assert result.exit_code == ExitCode.FAILED
    assert "error TENSORRT_LLM: tensorrt_llm cannot be imported" in result.stderr


def test_an_unknown_model(run: Run, control: Any) -> None:  # noqa: F811
    """Fails when the store is not asked."""
    assert run("compile", "nothing", "--gpu", "h200").exit_code == ExitCode.NOT_FOUND
