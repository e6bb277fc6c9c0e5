"""Weights in four bits, against an exhaustive choice of levels."""

from __future__ import annotations

import pytest
import torch

from argosy_services.engine.torch_engine.native.four_bits import halve
from argosy_services.engine.torch_engine.native.layout import GROUP, LEVELS

VALUES = torch.tensor(LEVELS, dtype=torch.float32) - 128


def weights(outputs: int = 48, inputs: int = 3 * GROUP, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * 0.02


def restored(weight: torch.Tensor) -> torch.Tensor:
    levels, scales = halve(weight)
    return VALUES[levels.int()] * scales.float().repeat_interleave(GROUP, dim=1)


def groups(weight: torch.Tensor) -> torch.Tensor:
    return weight.float().unflatten(1, (-1, GROUP))


def test_shapes_and_types() -> None:
    levels, scales = halve(weights().to(torch.bfloat16))
    assert (levels.shape, levels.dtype) == ((48, 192), torch.uint8)
    assert (scales.shape, scales.dtype) == ((48, 3), torch.bfloat16)
    assert levels.max() == 15


def test_numbers_that_four_bits_have_stay_as_they_are() -> None:
    levels = torch.randint(0, 16, (48, 3 * GROUP), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    levels[:, ::GROUP] = 15
    signs = torch.tensor([0.5, -0.25, 2.0]).repeat_interleave(GROUP)
    exact = VALUES[levels.int()] * signs
    assert torch.equal(restored(exact), exact)


def test_every_weight_has_its_nearest_level() -> None:
    weight = weights()
    error = (restored(weight) - weight).abs()
    scales = halve(weight)[1].float().repeat_interleave(GROUP, dim=1)
    least = (VALUES * scales[..., None] - weight[..., None]).abs().amin(2)
    # Levels are looked up by the nearest of 256 numbers, which are a scale apart.
    assert (error - least <= scales.abs() * 1.01).all()


def test_the_fitted_scale_beats_that_of_the_largest_weight() -> None:
    weight = weights(256)
    largest = groups(weight)
    top = largest.gather(2, largest.abs().argmax(2, keepdim=True)) / VALUES[-1]
    plain = (VALUES * top[..., None] - largest[..., None]).abs().amin(3).square().sum()
    fitted = (restored(weight) - weight).square().sum()
    assert fitted < 0.97 * plain
    assert fitted < 0.0085 * weight.square().sum(), "an evenly spaced scale of sixteen numbers has more"


@pytest.mark.parametrize("value", [0.0, 1e-20, 1e30])
def test_groups_without_a_usual_size(value: float) -> None:
    weight = weights()
    weight[3, :GROUP] = value
    found = restored(weight)
    assert found.isfinite().all()
    assert (found[3, :GROUP] - value).abs().max() <= 0.01 * max(value, 1e-9)
    assert torch.equal(found[4:], restored(weight[4:])), "other groups are not changed by it"
