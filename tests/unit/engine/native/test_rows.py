"""Kernels that work on one row each, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from argosy_services.engine.torch_engine.models.weights import Linear
from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.buffers import Inputs
from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import Module
from argosy_services.engine.torch_engine.native.formats import format_of
from argosy_services.engine.torch_engine.native.memory import Shelf
from argosy_services.engine.torch_engine.native.operations import Operations
from argosy_services.engine.torch_engine.native.packing import pack
from argosy_services.engine.torch_engine.native.processor import host
from argosy_services.engine.torch_engine.native.rows import emit_rows
from argosy_services.engine.torch_engine.native.workers import OperationList, Workers, emit_workers

from ...processors import REDUCED

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

KINDS = ("norm", "plain", "gate", "layer_norm", "gelu")
EPSILON = 1e-5


@pytest.fixture(scope="module")
def machine() -> Machine:
    def write() -> Module:
        module = Module("rows", host())
        emit_workers(module)
        emit_rows(module, "float32", KINDS, epsilon=EPSILON)
        return module

    return Machine(compiled(write, "test of rows", host()))


def run(machine: Machine, kind: str, given: torch.Tensor, size: int, norm: torch.Tensor | None = None) -> torch.Tensor:
    """What a kernel makes of float32 `[rows, n]`: `[rows, size]`."""
    out = Inputs.of(len(given), size, "float32")
    operations = Operations(machine, inputs="float32", threads=1)
    listed = OperationList([operations.rows(kind, given, out, norm=norm)])
    step = operations.new_step()
    operations.prepare(step, len(given))
    Workers(machine, 1).run(listed, step)
    return out.values.transpose(1, 2).reshape(-1, size)[: len(given)]


@pytest.fixture
def states() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(13, 192, generator=generator) * 3 + 1


def test_numbers_go_through(machine: Machine, states: torch.Tensor) -> None:
    assert torch.equal(run(machine, "plain", states, 192), states)


def test_rms_norm(machine: Machine, states: torch.Tensor) -> None:
    weight = torch.linspace(0.5, 2, 192)
    expected = functional.rms_norm(states.double(), (192,), weight.double(), EPSILON)
    torch.testing.assert_close(run(machine, "norm", states, 192, weight).double(), expected, atol=1e-5, rtol=1e-5)


def test_layer_norm_leaves_what_it_gives(machine: Machine, states: torch.Tensor) -> None:
    weight, bias = torch.linspace(0.5, 2, 192), torch.linspace(-1, 1, 192)
    expected = functional.layer_norm(states.double(), (192,), weight.double(), bias.double(), EPSILON)
    made = run(machine, "layer_norm", states, 192, torch.stack((weight, bias)))
    torch.testing.assert_close(made.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(states, made)


EXTREMES = [-1e30, -1e6, -300.0, -150.0, -100.0, -89.0, -88.0, -87.0, 87.0, 88.0, 89.0, 300.0, 1e6, 1e30]
"""Around where powers of e leave float32."""
NUMBERS = torch.cat((torch.linspace(-12, 12, 64 * 40 - len(EXTREMES)), torch.tensor(EXTREMES)))


def test_gates_of_any_size(machine: Machine) -> None:
    factors = torch.full_like(NUMBERS, 0.5)
    made = run(machine, "gate", torch.cat((NUMBERS, factors))[None], len(NUMBERS))[0]
    torch.testing.assert_close(made.double(), functional.silu(NUMBERS.double()) * 0.5, atol=1e-6, rtol=1e-6)


def test_gelu_of_numbers_of_any_size(machine: Machine) -> None:
    made = run(machine, "gelu", NUMBERS[None].clone(), len(NUMBERS))[0]
    torch.testing.assert_close(made.double(), functional.gelu(NUMBERS.double()), atol=1e-6, rtol=1e-6)


@REDUCED
@pytest.mark.parametrize("form", ["int8", "int16"])
def test_weights_that_are_packed_stay_as_they_are(form: str) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    kept = weight.clone()
    packed = pack(Linear(weight), format_of(form, host()), Shelf())
    assert torch.equal(weight, kept)
    limit = {"int8": 127, "int16": 1023}[form]
    np.testing.assert_allclose(packed.scales, weight.abs().amax(1) / limit, rtol=1e-6)
