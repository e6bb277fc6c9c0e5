"""Each bundled model's tokenizer beside the reference of the same files."""

from __future__ import annotations

import json
import shutil
from typing import Any, NamedTuple

import pytest

from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer


class Pair(NamedTuple):
    ours: Tokenizer
    theirs: Any


def load(model: LocalModel) -> Pair:
    from transformers import AutoTokenizer

    return Pair(Tokenizer.load(model), AutoTokenizer.from_pretrained(model.path))


@pytest.fixture(scope="session")
def smollm2_pair(smollm2: LocalModel) -> Pair:
    return load(smollm2)


@pytest.fixture(scope="session")
def minilm_pair(minilm: LocalModel) -> Pair:
    return load(minilm)


@pytest.fixture(scope="session")
def cleaning_pair(minilm: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """MiniLM's tokenizer with the older configuration that asks for spaces to be cleaned up."""
    directory = tmp_path_factory.mktemp("cleaning")
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(minilm.path / name, directory / name)
    config = json.loads((minilm.path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["clean_up_tokenization_spaces"] = True
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load(LocalModel("cleaning", "file://", directory, fingerprint="0" * 64, size_bytes=0))


@pytest.fixture(params=["smollm2_pair", "minilm_pair"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)
