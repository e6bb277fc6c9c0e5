"""Whole steps with the Triton kernels: in Triton's interpreter, and captured for real where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from argosy_services.engine.torch_engine.gpu.fp8 import fp8_linear, quantize
from argosy_services.engine.torch_engine.gpu.linear import GpuLinear
from argosy_services.engine.torch_engine.models.weights import Linear

from .tiny import CONFIGS, LLAMA, Padded, Plain, answers, prompts, random_adapter, random_weights

CUDA = torch.cuda.is_available()
# The interpreter of Triton 3.4 fails with numpy 2.4.
pytest.importorskip(
    "triton",
    None if CUDA else "3.7",
    reason="needs triton, from 3.7 on without a GPU; torch's builds for CUDA bring it",
)
INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="triton was imported to compile for a GPU"
)
GPU = pytest.mark.skipif(not CUDA, reason="needs an NVIDIA GPU")


@INTERPRETED
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_the_plain_runner(name: str) -> None:
    from argosy_services.engine.torch_engine.gpu.triton.kernels import TritonKernels

    config = CONFIGS[name]
    plain, padded = Plain(config, random_weights(config)), Padded(config, random_weights(config), TritonKernels())
    adapter = random_adapter(config, 18, 2)
    plain.adapters.put("a", adapter)
    padded.adapters.put("a", padded.adapters.prepare(adapter))
    asked = prompts(3, 30)
    expected = answers(plain.runner, asked, 3, ("a",))
    assert answers(padded.runner, asked, 3, ("a",)) == expected


@pytest.mark.parametrize(("capability", "number"), [("89", "bf16"), ("90", "bf16"), ("89", "fp32")])
def test_the_kernels_compile_for_a_device_that_is_not_here(capability: str, number: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, script, capability, number], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    rows = ["_norm", "_add_norm", "_place", "_advance", "_multiply", "_gated", "_quantize"]
    attention = ["_decode", "_decode", "_prompt", "_prompt", "_join"]
    assert done.stdout.split() == [*attention, *rows, "_shrink", "_expand", "_shrink_piece", "_expand_piece"]


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("name", CONFIGS)
def test_captured_steps_answer_as_eager_ones_do(name: str) -> None:
    from argosy_services.engine.torch_engine.gpu.triton.kernels import TritonKernels

    config, device = CONFIGS[name], torch.device("cuda")
    weights = random_weights(config, torch.bfloat16, device)
    eager, captured = (Padded(config, weights, TritonKernels(), ahead=ahead) for ahead in (False, True))
    captured.step.capture(with_adapters=True)
    asked, of = prompts(1, 5, 16, 60, 23, 40, 7), ("a", None, "b", "a", None, None, "b")
    # Loaded after the capture, into graphs that know slots only.
    for key, rank, every in (("a", 20, 1), ("b", 8, 2)):
        for side in (eager, captured):
            side.adapters.put(key, side.adapters.prepare(random_adapter(config, rank, every, torch.bfloat16)))
    assert answers(captured.runner, asked, 20, of) == answers(eager.runner, asked, 20, of)
    assert answers(captured.runner, asked, 20) == answers(eager.runner, asked, 20)


def _rounded(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    narrow, scales = quantize(weight)
    return Linear((narrow.float() * scales).to(weight.dtype), bias)


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("linear", [Linear, GpuLinear, fp8_linear])
def test_float32_and_fp8_on_a_gpu_agree_with_a_cpu(linear: object) -> None:
    from argosy_services.engine.torch_engine.gpu.triton.kernels import TritonKernels

    if linear is fp8_linear and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no FP8")
    dtype = torch.bfloat16 if linear is fp8_linear else torch.float32
    sides = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        # A CPU's reference for FP8 has its weights rounded and its products exact.
        of = _rounded if device.type == "cpu" and linear is fp8_linear else linear
        weights = random_weights(LLAMA, dtype, device, of)  # type: ignore[arg-type]
        if device.type == "cpu":
            sides.append(Plain(LLAMA, weights).runner)
        else:
            padded = Padded(LLAMA, weights, TritonKernels())
            padded.step.capture(with_adapters=False)
            sides.append(padded.runner)
    asked = prompts(1, 5, 16, 60, 23)
    expected, given = (answers(side, asked, 20) for side in sides)
    if linear is not fp8_linear:
        assert given == expected
    else:  # Rounding turns near ties over; without it half of the first tokens would differ.
        assert sum(one[0] == other[0] for one, other in zip(given, expected, strict=True)) >= 4
