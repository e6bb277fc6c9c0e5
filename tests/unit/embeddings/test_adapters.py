"""Adapters of an encoder: whose vectors a call gets, and what is left when one goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from argosy_services import metrics
from argosy_services.embeddings.adapters import EncoderAdapters
from argosy_services.embeddings.encoder import Encoder
from argosy_services.embeddings.service import EmbeddingsService
from argosy_services.errors import ArgosyError, Reason

from .adapted import RANK, Leases, running, write_adapter

TEXTS = ["A ship.", "A longer text about a ship at sea."]


@dataclass
class Scene:
    """A service with the adapters "one" and "two" in it."""

    service: EmbeddingsService
    adapters: EncoderAdapters
    leases: Leases


@pytest.fixture
async def scene(encoder: Encoder, tmp_path: Path) -> AsyncIterator[Scene]:
    with running(encoder) as (service, adapters, leases):
        for seed, name in enumerate(("one", "two")):
            weights = adapters.read_adapter(write_adapter(tmp_path / name, seed))
            await asyncio.wrap_future(adapters.load_adapter(leases.know(name), weights))
        yield Scene(service, adapters, leases)


async def test_calls_side_by_side_get_the_vectors_of_their_adapters(scene: Scene) -> None:
    names = ["", "one", "two"] * 4
    found = await asyncio.gather(*(scene.service.embed(TEXTS, adapter=name) for name in names))
    alone = {name: await scene.service.embed(TEXTS, adapter=name) for name in ("", "one", "two")}
    for name, answer in zip(names, found, strict=True):
        np.testing.assert_allclose(answer.vectors, alone[name].vectors, atol=1e-6)
        assert (answer.adapter, answer.adapter_version) == (name, f"version of {name}" if name else "")
    vectors = [answer.vectors for answer in alone.values()]
    assert min(np.abs(a - b).max() for a, b in [(vectors[0], vectors[1]), (vectors[1], vectors[2])]) > 0.01
    assert scene.leases.held == 0


async def test_usage_has_the_adapters_name(scene: Scene) -> None:
    labels = {"tenant": metrics.NO_TENANT, "model": "all-minilm-l6-v2", "adapter": "one"}
    before = metrics.USAGE_TOKENS.labels(**labels, kind="embedded").now()
    answer = await scene.service.embed(TEXTS, adapter="one")
    assert metrics.USAGE_TOKENS.labels(**labels, kind="embedded").now() == before + sum(answer.tokens)


async def test_only_the_changed_layers_are_copied(encoder: Encoder, tmp_path: Path) -> None:
    adapters = EncoderAdapters(encoder, max_rank=16)
    weights = adapters.read_adapter(write_adapter(tmp_path / "a", 1, layers=2))
    await asyncio.wrap_future(adapters.load_adapter("a@1", weights))
    made, base = adapters.adapted("a@1")._bert, encoder._bert
    layers = zip(made._blocks._layers, base._blocks._layers, strict=True)
    assert [a is b for a, b in layers] == [False] * 2 + [True] * 4
    assert made._words is base._words
    adapters.close()


async def test_an_adapter_that_left_is_named(scene: Scene) -> None:
    await asyncio.wrap_future(scene.adapters.unload_adapter(scene.leases.known["one"].key))
    assert len(scene.adapters) == 1
    with pytest.raises(ArgosyError) as caught:
        await scene.service.embed(TEXTS, adapter="one")
    assert (caught.value.reason, caught.value.metadata["adapter"]) == (Reason.ADAPTER_NOT_READY, "one")
    assert scene.leases.held == 0


async def test_a_revoked_lease_ends_the_call(scene: Scene) -> None:
    call = asyncio.create_task(scene.service.embed(["a long text about ships " * 40] * 2000, adapter="one"))
    while not scene.leases.held:
        await asyncio.sleep(0.001)
    scene.leases.revoke()
    with pytest.raises(ArgosyError) as caught:
        await call
    assert caught.value.reason is Reason.ADAPTER_NOT_READY
    assert scene.leases.held == scene.service.waiting_texts == 0


async def test_an_adapter_of_another_model_is_refused(scene: Scene) -> None:
    scene.leases.know("pirate", base_model="smollm2-135m-instruct")
    with pytest.raises(ArgosyError) as caught:
        await scene.service.embed(TEXTS, adapter="pirate")
    assert caught.value.reason is Reason.WRONG_BASE_MODEL
    assert (caught.value.metadata["expected"], caught.value.metadata["value"]) == (
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
    )


@pytest.mark.parametrize(("most", "reason"), [(RANK, None), (RANK - 1, Reason.ADAPTER_INVALID)])
def test_the_rank_is_bounded(encoder: Encoder, tmp_path: Path, most: int, reason: Reason | None) -> None:
    adapters = EncoderAdapters(encoder, max_rank=most)
    directory = write_adapter(tmp_path / "a", 1, ("dense",))
    if reason is None:
        assert adapters.read_adapter(directory).target_modules == ("dense",)
        return
    with pytest.raises(ArgosyError) as caught:
        adapters.read_adapter(directory)
    assert caught.value.reason is reason
