"""Blocks as machine code against the same blocks in torch."""

from __future__ import annotations

import dataclasses
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from argosy_services.embeddings.blocks import TorchBlocks
from argosy_services.embeddings.config import BertConfig
from argosy_services.embeddings.packing import Packed, pack
from argosy_services.embeddings.weights import LayerWeights, Norm
from argosy_services.engine.torch_engine.models.weights import Linear
from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.processor import AVX2, AVX512, Processor

from ..processors import REDUCED, on

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

if is_supported():
    from argosy_services.embeddings.native_blocks import NativeBlocks, obstacle

CONFIG = BertConfig(
    architecture="BertModel",
    vocab_size=100,
    hidden_size=192,
    intermediate_size=320,
    layers=2,
    heads=3,
    norm_eps=1e-12,
    max_positions=512,
    token_types=2,
)
# Around the sizes of tiles and of the steps that attention takes.
LENGTHS = [1, 1, 2, 15, 16, 17, 17, 63, 64, 65, 130, 200]


def layer(seed: int) -> LayerWeights:
    generator = torch.Generator().manual_seed(seed)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(
            torch.randn(outputs, inputs, generator=generator) * inputs**-0.5,
            torch.randn(outputs, generator=generator) * 0.1,
        )

    def norm() -> Norm:
        size = CONFIG.hidden_size
        weight = 1 + 0.2 * torch.randn(size, generator=generator)
        return Norm(weight, 0.1 * torch.randn(size, generator=generator), CONFIG.norm_eps)

    hidden, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    return LayerWeights(
        qkv=linear(3 * hidden, hidden),
        output=linear(hidden, hidden),
        attention_norm=norm(),
        up=linear(inner, hidden),
        down=linear(hidden, inner),
        norm=norm(),
    )


def batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, Packed]:
    """States of texts, each drawn by its length alone, and how they lie."""
    packed = pack([[0] * length for length in lengths])
    states = [
        torch.randn(length, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1000 * seed + length))
        for length in sorted(lengths)
    ]
    return torch.cat(states), packed


@pytest.fixture(scope="module", params=[on(AVX512), on(AVX2)])
def kind(request: pytest.FixtureRequest) -> Processor:
    return request.param


@pytest.fixture(scope="module")
def blocks(kind: Processor) -> NativeBlocks:
    return NativeBlocks(CONFIG, [layer(0), layer(1)], kind)


@pytest.mark.parametrize("cores", [1, 2])
def test_states_are_those_of_torch(blocks: NativeBlocks, cores: int) -> None:
    states, packed = batch(LENGTHS)
    exact = TorchBlocks(CONFIG.heads, [layer(0), layer(1)], torch.float32)(states, packed, cores)
    torch.testing.assert_close(blocks(states, packed, cores), exact, atol=0.01, rtol=0.01)
    assert torch.cosine_similarity(blocks(states, packed, cores), exact).min() > 0.9999


def test_neighbours_change_not_a_bit(blocks: NativeBlocks) -> None:
    together = blocks(*batch(LENGTHS), 1)
    start = 0
    for length in sorted(LENGTHS):
        # What others left in the buffers does not matter either.
        blocks(*batch([3 * length, 40], seed=7), 1)
        assert torch.equal(blocks(*batch([length]), 1), together[start : start + length])
        start += length


def test_other_blocks_share_the_rest(blocks: NativeBlocks, kind: Processor) -> None:
    states, packed = batch(LENGTHS)
    before = blocks(states, packed, 1)
    changed = blocks.replaced({1: layer(5)})
    assert torch.equal(changed(states, packed, 1), NativeBlocks(CONFIG, [layer(0), layer(5)], kind)(states, packed, 1))
    assert torch.equal(blocks(states, packed, 1), before)


def test_batches_at_once_do_not_meet(blocks: NativeBlocks) -> None:
    batches = [batch(LENGTHS[index:], seed=index) for index in range(6)]
    alone = [blocks(*each, 1) for each in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            runs = [pool.submit(blocks, *each, 1 + index % 2) for index, each in enumerate(batches)]
            for run, expected in zip(runs, alone, strict=True):
                assert torch.equal(run.result(), expected)


def test_threads_end_with_the_blocks(kind: Processor) -> None:
    before = threading.active_count()
    blocks = NativeBlocks(CONFIG, [layer(0)], kind)
    blocks(*batch([300]), 3)
    # A larger batch takes the place of what the first one had.
    blocks(*batch([900]), 3)
    assert threading.active_count() == before + 2
    del blocks
    gc.collect()
    assert threading.active_count() == before


@REDUCED
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": 100, "heads": 2}, "hidden_size 100 is no multiple of 64"),
        ({"intermediate_size": 100}, "intermediate_size 100 is no multiple of 64"),
        ({"heads": 12}, "size of a head 16"),
        ({}, None),
    ],
)
def test_what_the_kernels_cannot_compute_is_said(change: dict[str, int], reason: str | None) -> None:
    found = obstacle(dataclasses.replace(CONFIG, **change))
    assert found is None if reason is None else reason in (found or "")
