"""`argosy models` on a real store with a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.unit.cli.conftest import Run, words
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from argosy_services.cli.exit_codes import ExitCode


@pytest.fixture
def source(tmp_path: Path) -> str:
    directory = tmp_path / "tiny-model"
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(directory / "tokenizer.json"))
    save_file({"weight": torch.zeros(2, 2)}, directory / "model.safetensors")
    return directory.as_uri()


def test_the_life_of_a_model(run: Run, source: str, tmp_path: Path) -> None:
    assert "no models yet" in run("models", "list").stderr

    pulled = run("models", "pull", source)
    assert pulled.exit_code == 0, pulled.stderr
    assert pulled.stdout.startswith("tiny-model: ")
    assert str(tmp_path / "data" / "models" / "tiny-model") in pulled.stdout

    (row,) = words(run("models", "list").stdout)[1:]
    assert (row[0], row[3]) == ("tiny-model", source)
    (listed,) = json.loads(run("models", "list", "--json").stdout)
    assert listed["path"] == str(tmp_path / "data" / "models" / "tiny-model")

    assert run("models", "verify").stdout == "tiny-model: intact\n"
    weights = tmp_path / "data" / "models" / "tiny-model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    damaged = run("models", "verify", "tiny-model")
    assert damaged.exit_code == ExitCode.FAILED
    assert "model.safetensors has other content" in damaged.stdout

    assert run("models", "rm", "tiny-model").stdout == "tiny-model: removed\n"
    assert run("models", "verify", "tiny-model").exit_code == ExitCode.NOT_FOUND


def test_another_data_directory(run: Run, source: str, tmp_path: Path) -> None:
    assert run("models", "pull", source, "--data-dir", str(tmp_path / "elsewhere")).exit_code == 0
    assert (tmp_path / "elsewhere" / "models" / "tiny-model").is_dir()


def test_an_unknown_model(run: Run) -> None:
    result = run("models", "pull", "no-such-model")
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "known: " in result.stderr


def test_a_source_that_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("models", "pull", (tmp_path / "empty").as_uri())
    assert result.exit_code not in (ExitCode.OK, ExitCode.SERVER_FAULT)
    assert result.stderr.startswith("error MODEL_STORE: ")
