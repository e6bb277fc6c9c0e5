"""Factors of adapters, quantized by a kernel, against torch."""

from __future__ import annotations

import pytest
import torch

from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.narrowing import Narrower
from argosy_services.engine.torch_engine.native.processor import AVX2, AVX512

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=pytest.mark.skipif(not kind.is_here, reason=f"this processor is not {kind.name}"))
        for kind in (AVX512, AVX2)
    ],
    ids=lambda kind: kind.name,
)
def narrow(request: pytest.FixtureRequest) -> Narrower:
    return Narrower(request.param)


@pytest.mark.parametrize("shape", [(16, 16), (48, 576), (1536, 32), (32, 80)])
def test_bytes_stand_for_the_nearest_multiples_of_a_scale(narrow: Narrower, shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[1])).bfloat16()
    matrix[3] = 0.0
    bytes_, scales = narrow(matrix)
    levels = bytes_.permute(0, 2, 1, 3).reshape(shape).int() - 128
    largest = matrix.float().abs().amax(dim=1)
    torch.testing.assert_close(scales, largest / 127, rtol=1e-6, atol=0)
    assert levels.abs().max() == 127
    assert not levels[3].any()
    # Half a level, and what float32 leaves open where two levels are equally near.
    assert ((levels * scales[:, None] - matrix.float()).abs() <= scales[:, None] * 0.50001).all()


@pytest.mark.parametrize("matrix", [torch.zeros(16, 24).bfloat16(), torch.zeros(8, 16).bfloat16(), torch.zeros(16, 16)])
def test_what_the_kernel_cannot_read_is_refused(narrow: Narrower, matrix: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="cannot narrow"):
        narrow(matrix)
