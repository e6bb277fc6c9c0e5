"""Projections in FP8 on a GPU, or on a CPU, whose products torch has from 2.12 on."""

from __future__ import annotations

import pytest
import torch

from argosy_services.engine.torch_engine.config import UnsupportedModelError
from argosy_services.engine.torch_engine.gpu.fp8 import FORMAT, Fp8Linear, check_device, fp8_linear, quantize

from .plain import PlainKernels
from .tiny import LLAMA, Padded, answers, prompts, random_weights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().to(DEVICE)


def test_rows_keep_three_bits_whatever_their_size() -> None:
    values = draw(4, 64) * torch.tensor([1.0, 1e4, 1e-4, 0.0], device=DEVICE).bfloat16()[:, None]
    narrow, scales = quantize(values)
    assert (narrow.dtype, scales.dtype, scales.shape) == (FORMAT, torch.float32, (4, 1))
    error = (narrow.float() * scales - values.float()).abs()
    # Half of the last place of three bits, or of the least numbers below which e4m3 has no more places.
    assert (error <= torch.maximum(values.float().abs() / 16, scales * 2**-10)).all()
    assert narrow.float().abs().amax(dim=-1).tolist() == [448.0, 448.0, 448.0, 0.0]


@pytest.mark.parametrize("biased", [False, True])
def test_a_projection_is_close_to_the_exact_one(biased: bool) -> None:
    weight, bias = draw(48, 256, seed=1) / 16, draw(48, seed=2) if biased else None
    linear, states = fp8_linear(weight, bias), draw(7, 256)
    assert (linear.weight.dtype, linear.weight.shape, linear.scales.shape) == (FORMAT, (48, 256), (48, 1))
    exact = torch.nn.functional.linear(states.float(), weight.float(), None if bias is None else bias.float())
    given = linear(states)
    assert given.dtype == torch.bfloat16
    error = (given.float() - exact).square().mean().sqrt()
    # Each factor is off by 2.3 % (half a place of three bits, evenly distributed), their product by sqrt(2) of that.
    assert 0.01 < error < 0.045, "products of deviation 1"


def test_an_outlier_costs_its_own_row_and_output_only() -> None:
    weight, states = draw(48, 256, seed=1) / 16, draw(7, 256)
    expected = fp8_linear(weight, None)(states)
    weight[5, 9], states[2, 100] = 1e4, 1e4
    given = fp8_linear(weight, None)(states)
    rows, outputs = [row for row in range(7) if row != 2], [output for output in range(48) if output != 5]
    assert torch.equal(given[rows][:, outputs], expected[rows][:, outputs])
    assert given.isfinite().all()


def test_a_projection_is_the_scaled_product_of_its_operands() -> None:
    states, linear = draw(5, 64), fp8_linear(draw(48, 64, seed=1), draw(48, seed=2))
    narrow, scales = quantize(states)
    product = narrow.double() @ linear.weight.double().T * scales * linear.scales.T
    expected = product.bfloat16() + linear.bias
    torch.testing.assert_close(linear(states), expected, atol=0.03, rtol=0.01)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="test_triton_runner.py has it on a GPU")
def test_a_decoder_in_fp8_answers_in_padded_batches() -> None:
    weights = random_weights(LLAMA, torch.bfloat16, linear=fp8_linear)
    assert all(isinstance(layer.down, Fp8Linear) for layer in weights.layers)
    assert len(list(weights.parameters())) == len(list(random_weights(LLAMA).parameters()))
    runner = Padded(LLAMA, weights, PlainKernels()).runner
    asked = prompts(1, 5, 40)
    together = answers(runner, asked, 12)
    assert [answers(runner, [prompt], 12)[0] for prompt in asked] == together


def test_where_it_cannot_run_is_said() -> None:
    with pytest.raises(UnsupportedModelError, match=r"multiples of 16, this model has one of 48 x 100; use none"):
        fp8_linear(draw(48, 100), None)
    with pytest.raises(UnsupportedModelError, match=r"compute capability 8\.9 or higher, generation\.device is cpu"):
        check_device(torch.device("cpu"))


def test_an_older_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(UnsupportedModelError, match=r"8\.9 or higher, cuda:0 has 8\.6; use none"):
        check_device(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_device(torch.device("cuda:0"))
