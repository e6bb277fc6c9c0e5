"""Matrices, written by a kernel in the order in which others read them, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
from argosy_services.engine.torch_engine.native.formats import Format, format_of
from argosy_services.engine.torch_engine.native.processor import AVX2, AVX512, host
from argosy_services.engine.torch_engine.native.writer import writer_of

from ...processors import on

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

# The last ones have a rank that is no multiple of 16, as outputs and as inputs.
SHAPES = [(16, 16), (48, 576), (1536, 32), (32, 80), (8, 64), (64, 5)]


@pytest.fixture(scope="module", params=[on(AVX512), on(AVX2)])
def int8(request: pytest.FixtureRequest) -> Format:
    return format_of("int8", request.param)


def write(form: Format, matrices: list[torch.Tensor], vectors: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each matrix as it is written, in the order of its outputs and inputs, padded to whole streams and to 16; and the
    scales."""
    writer, together, across = writer_of(form), form.together, 16 * vectors
    dtype = {"int8": torch.uint8, "int16": torch.int16, "bfloat16": torch.bfloat16, "float32": torch.float32}[form.name]
    made, tasks = [], []
    for matrix in matrices:
        outputs, size = -(-matrix.shape[0] // across) * across, -(-matrix.shape[1] // 16) * 16
        made.append(
            (torch.zeros(outputs // across, size // together, vectors, 16, together, dtype=dtype), torch.zeros(outputs))
        )
        tasks.append((matrix.data_ptr(), made[-1][0].data_ptr(), made[-1][1].data_ptr(), *matrix.shape, size, vectors))
    writer(np.array(tasks, np.int64), matrices[0].dtype)
    return [(written.permute(0, 2, 3, 1, 4).reshape(len(scales), -1), scales) for written, scales in made]


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_stand_for_the_nearest_multiples_of_a_scale(int8: Format, dtype: torch.dtype, vectors: int) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(*shape, generator=generator).to(dtype) for shape in SHAPES]
    for matrix in matrices:
        matrix[3] = 0.0
    for matrix, (bytes_, scales) in zip(matrices, write(int8, matrices, vectors), strict=True):
        outputs, size = matrix.shape
        levels = bytes_[:outputs].int() - 128
        largest = matrix.float().abs().amax(dim=1)
        torch.testing.assert_close(scales[:outputs], largest / 127, rtol=1e-6, atol=0)
        assert levels.abs().max() == 127
        assert not levels[3].any()
        assert not levels[:, size:].any()
        assert not scales[outputs:].any()
        # Half a level, and what float32 leaves open where two levels are equally near.
        given = scales[:outputs, None]
        assert ((levels[:, :size] * given - matrix.float()).abs() <= given * 0.50001).all()


def test_numbers_of_11_bits(int8: Format) -> None:
    matrix = torch.randn(48, 576, generator=torch.Generator().manual_seed(3))
    ((levels, scales),) = write(format_of("int16", int8.processor), [matrix])
    torch.testing.assert_close(scales, matrix.abs().amax(dim=1) / 1023, rtol=1e-6, atol=0)
    assert levels.abs().max() == 1023
    assert ((levels * scales[:, None] - matrix).abs() <= scales[:, None] * 0.5001).all()


@pytest.mark.parametrize("form", ["bfloat16", "float32"])
def test_other_formats_keep_the_numbers(form: str) -> None:
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    generator = torch.Generator().manual_seed(2)
    matrices = [torch.randn(*shape, generator=generator).to(dtype) for shape in SHAPES]
    for matrix, (written, _) in zip(matrices, write(format_of(form, host()), matrices), strict=True):
        outputs, size = matrix.shape
        assert torch.equal(written[:outputs, :size], matrix)
        assert not written[outputs:].any()
        assert not written[:, size:].any()


@pytest.mark.parametrize(("form", "wrong"), [("int8", torch.float32), ("float32", torch.bfloat16)])
def test_factors_of_another_type_are_refused(form: str, wrong: torch.dtype) -> None:
    pair = LoraPair(torch.zeros(16, 64, dtype=wrong), torch.zeros(64, 16, dtype=wrong))
    adapters = NativeAdapters(1, ["q_proj"], format_of(form, host()))
    with pytest.raises(ValueError, match=f"q_proj: factors of {wrong}"):
        adapters.prepare(LoraWeights("version", 16, ("q_proj",), 0, {"q_proj": pair}))
