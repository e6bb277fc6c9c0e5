"""The Triton kernels against the same arithmetic in torch's operators: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from argosy_services.engine.torch_engine.gpu.fp8 import quantize
from argosy_services.engine.torch_engine.gpu.kernels import Blocks, Cache, Factors, Prompts, Scoring

from .plain import PlainKernels

CUDA = torch.cuda.is_available()
# The interpreter of Triton 3.4 fails with numpy 2.4.
pytest.importorskip(
    "triton",
    None if CUDA else "3.7",
    reason="needs triton, from 3.7 on without a GPU; torch's builds for CUDA bring it",
)
pytestmark = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="no GPU, and triton was imported to compile for one"
)
DEVICE = torch.device("cuda" if CUDA else "cpu")
BLOCK_TOKENS = 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# The interpreter multiplies no matrices of bfloat16.
PRODUCTS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16 if CUDA else torch.float16])


@pytest.fixture(scope="module")
def kernels() -> Any:
    from argosy_services.engine.torch_engine.gpu.triton.kernels import TritonKernels

    return TritonKernels()


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(given: torch.Tensor, expected: torch.Tensor) -> None:
    limit = TOLERANCE[expected.dtype]
    assert given.dtype == expected.dtype
    torch.testing.assert_close(given.cpu(), expected, atol=limit, rtol=limit)


@DTYPES
@pytest.mark.parametrize("offset", [False, True])
def test_norms(kernels: Any, dtype: torch.dtype, offset: bool) -> None:
    weight = draw(48, dtype=torch.float32 if offset else dtype, seed=1)
    fused = draw(5, 3 * 48, dtype=dtype)
    for states in (fused[:, :48], fused[:, 48:].unflatten(-1, (2, 48))):
        expected = PlainKernels().norm(states, weight, 1e-5, offset=offset)
        compare(kernels.norm(states.to(DEVICE), weight.to(DEVICE), 1e-5, offset=offset), expected)


@DTYPES
@pytest.mark.parametrize("offset", [False, True])
def test_sums_and_their_norms(kernels: Any, dtype: torch.dtype, offset: bool) -> None:
    weight = draw(48, dtype=torch.float32 if offset else dtype, seed=1)
    states, added = draw(5, 48, dtype=dtype), draw(5, 48, dtype=dtype, seed=2)
    expected = PlainKernels().add_norm(states, added, weight, 1e-5, offset=offset)
    given = kernels.add_norm(states.to(DEVICE), added.to(DEVICE), weight.to(DEVICE), 1e-5, offset=offset)
    for one, other in zip(given, expected, strict=True):
        compare(one, other)


@DTYPES
@pytest.mark.parametrize("turned", [True, False])
def test_keys_and_values_are_turned_and_placed(kernels: Any, dtype: torch.dtype, turned: bool) -> None:
    fused = draw(5, 8 * 24, dtype=dtype)
    query, key, value = (part.unflatten(-1, (-1, 24)) for part in fused.split((96, 48, 48), dim=-1))
    half = draw(2, 5, 1, 12, dtype=dtype, seed=1)
    cos, sin = torch.cat((half, half), dim=-1)
    turn = (cos, sin) if turned else None
    slots = torch.tensor([3, 40, 0, 21, 7])
    of = cache(dtype, kv_heads=2, size=24, blocks=3)
    there = on_device(Cache(of.keys.clone(), of.values.clone(), BLOCK_TOKENS))
    expected = PlainKernels().place(query, key, value, turn=turn, cache=of, slots=slots)
    given = kernels.place(
        *(part.unflatten(-1, (-1, 24)) for part in fused.to(DEVICE).split((96, 48, 48), dim=-1)),
        turn=(cos.to(DEVICE), sin.to(DEVICE)) if turned else None,
        cache=there,
        slots=slots.to(DEVICE),
    )
    compare(given, expected)
    compare(there.keys, of.keys)
    compare(there.values, of.values)


def test_a_step_is_followed_by_the_next(kernels: Any) -> None:
    numbers = torch.tensor(
        [[5, 6, 7, 8, 0, 99], [14, 15, 47, 0, 0, 99], [30, 31, 79, 96, 0, 99], [-1, 2, -1, -1, 0, 99]]
    )
    tables = torch.tensor([[1, 2, 0], [1, 0, 0], [3, 2, 4], [6, 0, 0], [0, 5, 5]], dtype=torch.int32)
    likeliest = torch.tensor([50, 60, 70, 80, 90])
    given = [part.clone().to(DEVICE) for part in (numbers, tables, likeliest)]
    for which, to in ((PlainKernels(), (numbers, tables, likeliest)), (kernels, given)):
        which.advance(*to, Blocks(BLOCK_TOKENS, 6))
    assert torch.equal(given[0].cpu(), numbers)
    assert numbers[:3, :3].tolist() == [[50, 60, 70], [15, 16, 48], [31, 0, 64]], "the third is at its table's end"
    assert numbers[:, 3].tolist() == [8, 0, 96, -1], "padding stays"
    assert numbers[:, 5].tolist() == [99] * 4, "so does what is beyond the batch"


@DTYPES
@pytest.mark.parametrize("shape", [(48, 64), (131, 300), (1536, 576), (8, 5120), (6, 9216)])
@pytest.mark.parametrize("biased", [True, False])
def test_products_of_one_row(dtype: torch.dtype, shape: tuple[int, int], biased: bool) -> None:
    from argosy_services.engine.torch_engine.gpu.triton import one_row

    weight, bias = draw(*shape, dtype=dtype) * shape[1] ** -0.5, draw(shape[0], dtype=dtype, seed=1) if biased else None
    states = draw(1, shape[1], dtype=dtype, seed=2)
    exact = torch.nn.functional.linear(states.double(), weight.double(), None if bias is None else bias.double())
    given = one_row.multiply(states.to(DEVICE), weight.to(DEVICE), None if bias is None else bias.to(DEVICE))
    compare(given, exact.to(dtype))


@pytest.mark.skipif(not CUDA, reason="the interpreter reads no FP8")
def test_the_product_of_one_row_in_fp8() -> None:
    from argosy_services.engine.torch_engine.gpu.triton import one_row

    weight, scales = quantize(draw(48, 256, dtype=torch.bfloat16) / 16)
    states, bias = draw(1, 256, dtype=torch.bfloat16, seed=2), draw(48, dtype=torch.bfloat16, seed=1)
    exact = torch.nn.functional.linear(states.double(), weight.double() * scales.double(), bias.double())
    given = one_row.multiply(*(part.to(DEVICE) for part in (states, weight, bias, scales)))
    compare(given, exact.bfloat16())


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates(kernels: Any, dtype: torch.dtype, activation: Any) -> None:
    gate, up = draw(3, 2 * 1100, dtype=dtype).chunk(2, dim=-1)
    compare(kernels.gated(gate.to(DEVICE), up.to(DEVICE), activation), PlainKernels().gated(gate, up, activation))


def test_rows_in_fp8(kernels: Any) -> None:
    from argosy_services.engine.torch_engine.gpu.triton import rows

    states = draw(4, 100, dtype=torch.bfloat16) * torch.tensor([1.0, 300.0, 1e-3, 0.0]).bfloat16()[:, None]
    narrow, scales = rows.quantize(states.to(DEVICE))
    expected, expected_scales = quantize(states)
    torch.testing.assert_close(scales.cpu(), expected_scales, rtol=1e-6, atol=0)
    # Triton's interpreter forgets to raise the exponent where rounding makes a power of two, and turns ties over.
    compared = CUDA | (expected.float().frexp().mantissa.abs() != 0.5)
    assert compared.float().mean() > 0.6
    given, wanted = narrow.cpu().float()[compared], expected.float()[compared]
    assert (given == wanted).float().mean() > 0.98
    torch.testing.assert_close(given, wanted, atol=0, rtol=1 / 8)


SCORINGS = [Scoring(0.25, None, None), Scoring(0.25, 4.0, None), Scoring(0.25, None, 70), Scoring(0.3, 2.0, 5)]


def cache(dtype: torch.dtype, *, kv_heads: int, size: int, blocks: int) -> Cache:
    return Cache(
        draw(kv_heads, blocks * BLOCK_TOKENS, size, dtype=dtype, seed=2),
        draw(kv_heads, blocks * BLOCK_TOKENS, size, dtype=dtype, seed=3),
        BLOCK_TOKENS,
    )


def on_device(of: Cache) -> Cache:
    return Cache(of.keys.to(DEVICE), of.values.to(DEVICE), of.block_tokens)


def scattered(*lengths: int) -> torch.Tensor:
    """Tables of sequences whose blocks lie anywhere; what a sequence does not need is a block that is not there."""
    needed = [-(-length // BLOCK_TOKENS) for length in lengths]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(4)).int()
    tables = torch.full((len(lengths), max(needed) + 1), 1 << 30, dtype=torch.int32)
    for row, blocks in enumerate(order.split(needed)):
        tables[row, : len(blocks)] = blocks
    return tables


@PRODUCTS
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("shape", [(6, 2, 16), (2, 2, 40), (5, 1, 8)])
def test_decoding_rows(kernels: Any, dtype: torch.dtype, scoring: Scoring, shape: tuple[int, int, int]) -> None:
    heads, kv_heads, size = shape
    lengths = (1, 16, 17, 70, 200)
    tables, of = scattered(*lengths), cache(dtype, kv_heads=kv_heads, size=size, blocks=24)
    positions = torch.tensor([length - 1 for length in lengths])
    query = draw(len(lengths), heads, size, dtype=dtype)
    expected = PlainKernels().attend_decodes(query, of, tables, positions, scoring)
    arguments = (query.to(DEVICE), on_device(of), tables.to(DEVICE), positions.to(DEVICE), scoring)
    compare(kernels.attend_decodes(*arguments), expected)


def test_a_decoding_row_is_the_same_in_any_batch(kernels: Any) -> None:
    tables, of = scattered(90, 200, 33).to(DEVICE), on_device(cache(torch.float32, kv_heads=2, size=16, blocks=24))
    positions = torch.tensor([89, 199, 32], device=DEVICE)
    query = draw(3, 4, 16, dtype=torch.float32).to(DEVICE)
    together = kernels.attend_decodes(query, of, tables, positions, SCORINGS[0])
    alone = kernels.attend_decodes(query[1:2], of, tables[1:2], positions[1:2], SCORINGS[0])
    assert torch.equal(together[1:2], alone)


@PRODUCTS
@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("shape", [(6, 2, 16), (5, 1, 8)])
def test_pieces_of_prompts(kernels: Any, dtype: torch.dtype, scoring: Scoring, shape: tuple[int, int, int]) -> None:
    heads, kv_heads, size = shape
    pieces = [(0, 1), (0, 37), (100, 30), (63, 2), (5, 1)]
    tables = scattered(*(start + count for start, count in pieces))
    of = cache(dtype, kv_heads=kv_heads, size=size, blocks=20)
    counts = [count for _, count in pieces]
    firsts = [sum(counts[:index]) for index in range(len(counts))]
    spans = torch.tensor([(first, *piece) for first, piece in zip(firsts, pieces, strict=True)], dtype=torch.int32)
    tasks = torch.tensor(kernels.tasks_of(counts, heads // kv_heads, size * dtype.itemsize), dtype=torch.int32)
    query = draw(sum(counts), heads, size, dtype=dtype)
    expected = PlainKernels().attend_prompts(query, of, Prompts(tables, spans, tasks), scoring)
    prompts = Prompts(tables.to(DEVICE), spans.to(DEVICE), tasks.to(DEVICE))
    compare(kernels.attend_prompts(query.to(DEVICE), on_device(of), prompts, scoring), expected)


def low_rank(dtype: torch.dtype, inputs: int, *outputs: int) -> list[Factors]:
    """Factors of three slots for some modules, whose ranks differ; a module may be left as it is."""
    made = []
    for module, size in enumerate(outputs):
        ranks = torch.tensor([4, 32, 17] if module == 0 else [0, 17, 32 * (module % 2)], dtype=torch.int32)
        factors = Factors(
            draw(3, 32, inputs, dtype=dtype, seed=module) * 0.05, draw(3, size, 32, dtype=dtype, seed=9) * 0.2, ranks
        )
        for slot, rank in enumerate(ranks.tolist()):
            factors.a[slot, rank:] = 0
            factors.b[slot, :, rank:] = 0
        made.append(factors)
    return made


def placed(factors: list[Factors]) -> list[Factors]:
    """The same side by side in one memory, as slots have it."""
    parts = [part.flatten(1) for each in factors for part in (each.a, each.b)]
    memory = torch.cat(parts, dim=1).to(DEVICE)
    pieces = memory.split([part.shape[1] for part in parts], dim=1)
    return [
        Factors(a.view(each.a.shape), b.view(each.b.shape), each.ranks.to(DEVICE))
        for each, a, b in zip(factors, pieces[::2], pieces[1::2], strict=True)
    ]


def leave_garbage(*shape: int) -> None:
    """What memory held before must not matter."""
    torch.full(shape, float("nan"), device=DEVICE)


@DTYPES
@pytest.mark.parametrize("sizes", [(140,), (140, 33), (140, 30, 257)])
def test_low_rank_products(kernels: Any, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    factors, slots = low_rank(dtype, 300, *sizes), torch.tensor([1, -1, 0, 2, 1])
    states, fused = draw(5, 300, dtype=dtype), draw(5, 30 + sum(sizes), dtype=dtype, seed=3)
    given, expected = fused.clone().to(DEVICE), fused.clone()
    PlainKernels().add_low_rank(states, expected[:, 30:].split(sizes, dim=1), factors, slots)
    leave_garbage(len(sizes), 5, 32)
    outs = given[:, 30:].split(sizes, dim=1)
    kernels.add_low_rank(states.to(DEVICE), outs, placed(factors), slots.to(DEVICE))
    compare(given, expected)
    assert torch.equal(given[1].cpu(), fused[1]), "a row without adapter stays as it is"
    assert torch.equal(given[:, :30].cpu(), fused[:, :30]), "and so do other columns"
    assert (given[0].cpu() - fused[0]).abs().max() > 0.1


@PRODUCTS
def test_low_rank_products_of_pieces(kernels: Any, dtype: torch.dtype) -> None:
    sizes = (140, 33)
    factors = low_rank(dtype, 300, *sizes)
    states, fused = draw(160, 300, dtype=dtype), draw(160, 30 + sum(sizes), dtype=dtype, seed=3)
    given, expected = fused.clone().to(DEVICE), fused.clone()
    pieces = torch.tensor([[3, 64, 1], [67, 20, 1], [90, 1, 0], [91, 40, 2]], dtype=torch.int32)
    PlainKernels().add_low_rank_pieces(states, expected[:, 30:].split(sizes, dim=1), factors, pieces)
    leave_garbage(160, 32)
    outs = given[:, 30:].split(sizes, dim=1)
    kernels.add_low_rank_pieces(states.to(DEVICE), outs, placed(factors), pieces.to(DEVICE))
    compare(given, expected)
    untouched = [*range(3), *range(87, 90), *range(131, 160)]
    assert torch.equal(given[untouched].cpu(), fused[untouched])
    assert (given[3].cpu() - fused[3]).abs().max() > 0.1
