"""Threads that share lists of operations."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import I64, PTR, Body, Module
from argosy_services.engine.torch_engine.native.processor import X86_64
from argosy_services.engine.torch_engine.native.workers import OperationList, Workers, emit_workers

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

TASKS = 13
OPERATIONS = 60


@pytest.fixture(scope="module")
def machine() -> Machine:
    def write() -> Module:
        module = Module("sums", X86_64)
        emit_workers(module)
        # The sum of two neighbours: wrong unless all tasks of the operation before are done.
        body = Body(module, "add", [PTR, I64, PTR])
        arguments, task, _ = body.arguments
        given, out = body.load(PTR, arguments, 0), body.load(PTR, arguments, 8)
        after = body.rem(body.add(task, 1), TASKS)
        total = body.add(*(body.load(I64, given, body.mul(place, 8)) for place in (task, after)))
        body.store(total, out, body.mul(task, 8))
        body.end()
        return module

    return Machine(compiled(write, "test of workers", X86_64))


class Sums:
    """A chain of operations, each of which adds up what the one before gave."""

    def __init__(self, machine: Machine) -> None:
        self.rows: NDArray[np.int64] = np.zeros((OPERATIONS + 1, TASKS), np.int64)
        addresses = [row.ctypes.data for row in self.rows]
        kernel = machine.address("add")
        self.operations = OperationList([(kernel, [addresses[at], addresses[at + 1]], 0) for at in range(OPERATIONS)])
        self.step = np.array([TASKS], np.int64)

    def begin(self, seed: int) -> NDArray[np.int64]:
        """New numbers; the result that they lead to."""
        self.rows[1:] = 0
        self.rows[0] = row = np.random.default_rng(seed).integers(0, 100, TASKS)
        for _ in range(OPERATIONS):
            row = row + np.roll(row, -1)
        return row


@pytest.fixture
def sums(machine: Machine) -> Sums:
    return Sums(machine)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_an_operation_begins_when_the_one_before_is_over(machine: Machine, sums: Sums, threads: int) -> None:
    workers = Workers(machine, threads)
    for seed in range(200):
        expected = sums.begin(seed)
        workers.run(sums.operations, sums.step)
        assert np.array_equal(sums.rows[-1], expected)
    workers.close()


def test_a_thread_that_has_not_come_holds_no_operation_up(
    machine: Machine, sums: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[threading.Thread] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: late.append(thread))
        workers = Workers(machine, 3)
    expected = sums.begin(0)
    run = threading.Thread(target=workers.run, args=(sums.operations, sums.step))
    run.start()
    deadline = time.monotonic() + 30
    while not np.array_equal(sums.rows[-1], expected):
        assert time.monotonic() < deadline, "operations wait for a thread that has no part in them"
        time.sleep(0.001)
    # The list itself ends with all, since the next one uses the same counters.
    assert run.is_alive()
    for each in late:
        each.start()
    run.join(30)
    assert not run.is_alive()
    assert np.array_equal(sums.rows[-1], expected)
    workers.close()
