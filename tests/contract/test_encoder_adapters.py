"""Adapters of the embedding model go through the same registry as those of the language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import argosy

from ..unit.embeddings.adapted import write_adapter

pytestmark = pytest.mark.usefixtures("nothing_leaks")

BASE = "all-minilm-l6-v2"
TEXTS = ["A ship at sea.", "The harbour master's letter."]


@pytest.fixture(scope="session")
def files(adapter_root: Path) -> list[Path]:
    """Two adapters of the embedding model."""
    return [write_adapter(adapter_root / f"encoder{seed}", seed) for seed in range(2)]


def test_an_adapter_changes_the_vectors_of_those_who_name_it(
    client: argosy.Client, files: list[Path], metric: Callable[..., float]
) -> None:
    plain = np.asarray(client.embeddings.embed(TEXTS))
    loaded = client.adapters.load("tone", files[0], base_model=BASE)
    try:
        adapted = client.embeddings.embed(TEXTS, adapter="tone")
        assert (adapted.adapter, adapted.adapter_version) == ("tone", loaded.version)
        assert np.abs(np.asarray(adapted) - plain).max() > 0.01
        np.testing.assert_allclose(
            np.asarray(client.embeddings.embed(TEXTS, adapter=loaded.version)), adapted, atol=1e-6
        )
        np.testing.assert_allclose(np.asarray(client.embeddings.embed(TEXTS)), plain, atol=1e-6)
        assert metric("argosy_usage_requests_total", model=BASE, adapter="tone") == 2
    finally:
        client.adapters.unload("tone")
    with pytest.raises(argosy.AdapterNotReadyError):
        client.embeddings.embed(TEXTS, adapter="tone")
    assert metric("argosy_adapter_slots_in_use", model=BASE) == 0


def test_an_alias_is_flipped(client: argosy.Client, files: list[Path]) -> None:
    versions = [client.adapters.load(f"tone{n}", path, base_model=BASE).version for n, path in enumerate(files)]
    try:
        for version in versions:
            client.adapters.set_alias("tone@prod", {version: 1})
            assert client.embeddings.embed(TEXTS, adapter="tone@prod").adapter_version == version
    finally:
        client.adapters.delete_alias("tone@prod")
        for number in range(2):
            client.adapters.unload(f"tone{number}")


def test_an_adapter_of_the_other_model_is_refused(client: argosy.Client, files: list[Path], good_adapter: Path) -> None:
    with pytest.raises(argosy.AdapterInvalidError, match="the model has no layer"):
        client.adapters.load("crossed", files[0])
    client.adapters.unload("crossed")
    client.adapters.load("tone", files[0], base_model=BASE)
    client.adapters.load("pirate", good_adapter)
    try:
        with pytest.raises(argosy.WrongBaseModelError):
            client.embeddings.embed(TEXTS, adapter="pirate")
        with pytest.raises(argosy.WrongBaseModelError):
            client.generation.generate("x", adapter="tone", max_tokens=2)
    finally:
        client.adapters.unload("tone")
        client.adapters.unload("pirate")


def test_an_unknown_adapter_is_named(client: argosy.Client) -> None:
    with pytest.raises(argosy.AdapterNotFoundError, match="nobody"):
        client.embeddings.embed(TEXTS, adapter="nobody")
    with pytest.raises(argosy.InputTooLargeError, match="adapter_sticky_key"):
        client.embeddings.embed(TEXTS, adapter="tone@prod", adapter_sticky_key="x" * 257)
