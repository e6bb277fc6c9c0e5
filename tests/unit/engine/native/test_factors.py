"""Factors of adapters, written by a kernel, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from argosy_services.engine.torch_engine.lora.reader import LoraPair, LoraWeights
from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
from argosy_services.engine.torch_engine.native.factors import FactorWriter
from argosy_services.engine.torch_engine.native.gemm import Format, format_of
from argosy_services.engine.torch_engine.native.processor import AVX2, AVX512, host

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

# The last ones have a rank that is no multiple of 16, as outputs and as inputs.
SHAPES = [(16, 16), (48, 576), (1536, 32), (32, 80), (8, 64), (64, 5)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=pytest.mark.skipif(not kind.is_here, reason=f"this processor is not {kind.name}"))
        for kind in (AVX512, AVX2)
    ],
    ids=lambda kind: kind.name,
)
def int8(request: pytest.FixtureRequest) -> Format:
    return format_of("int8", request.param)


def write(form: Format, matrices: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each matrix as it is written, in the order of its outputs and inputs, both padded to 16; and the scales."""
    writer = FactorWriter(form)
    made, tasks = [], []
    for matrix in matrices:
        outputs, size = (-(-length // 16) * 16 for length in matrix.shape)
        together = form.together
        shape = outputs // 16, size // together, 16, together
        made.append((torch.zeros(shape, dtype=torch.uint8 if writer.scaled else writer.dtype), torch.zeros(outputs)))
        tasks.append((matrix.data_ptr(), made[-1][0].data_ptr(), made[-1][1].data_ptr(), *matrix.shape, size))
    writer(np.array(tasks, np.int64))
    return [(written.permute(0, 2, 1, 3).reshape(len(scales), -1), scales) for written, scales in made]


def test_bytes_stand_for_the_nearest_multiples_of_a_scale(int8: Format) -> None:
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(*shape, generator=generator).bfloat16() for shape in SHAPES]
    for matrix in matrices:
        matrix[3] = 0.0
    for matrix, (bytes_, scales) in zip(matrices, write(int8, matrices), strict=True):
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
