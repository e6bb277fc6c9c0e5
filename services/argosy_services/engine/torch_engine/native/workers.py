"""Runs lists of operations on several threads, without Python between them.

A list is one entry for each operation: a kernel, its arguments, and where the step says how many tasks it has. Threads
take tasks one by one, and an operation is over when its tasks are done, whoever did them: a thread whose core the
system has given to something else holds the others up for the task that it had begun, and for no operation that it has
not reached. So that its core is taken when it has begun none, it offers it now and then between two operations. Between
lists threads sleep in the kernel.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.compile import Machine
from argosy_services.engine.torch_engine.native.emit import I32, I64, PTR, VOID, Body, Module, Value

# What the threads share, each on a cache line of its own. `_DONE` counts tasks of a list, `_LEFT` followers that are
# through with it.
_GENERATION, _DONE, _LEFT, _ASLEEP, _OPERATIONS, _COUNT, _STEP, _COUNTERS, _THREADS, _STOP = range(0, 640, 64)
_SHARED_BYTES = 640
_OPERATION_BYTES = 24
# Looks at a number before a thread that waits for it goes to sleep: some 20 microseconds.
_LOOKS = 1_000
# Operations between two offers of the core, about one layer: each costs half a microsecond if nothing wants it.
_OFFERS = 8
_SCHED_YIELD = 24
_FUTEX = 202
_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # Within this process.


def emit_workers(module: Module) -> None:
    """Writes `lead`, which starts a list and takes part in it, and `follow`, a thread's whole life."""
    _emit_work(module)
    lead = Body(module, "lead", [PTR])
    shared = lead.arguments[0]
    others = lead.sub(lead.load(I64, shared, _THREADS), 1)
    for place in (_DONE, _LEFT):
        lead.store(lead.int(0), shared, place)
    lead.builder.atomic_rmw("add", lead.at(shared, _GENERATION), ir.Constant(I32, 1), "seq_cst")
    with lead.when(lead.less(0, others)):
        _futex(lead, shared, _GENERATION, _FUTEX_WAKE, others)
    lead.builder.call(module.globals["work"], [shared])
    # Whoever is still on its way looks at the counters, which the next list sets back.
    _await(lead, shared, _LEFT, others)
    lead.end()

    follow = Body(module, "follow", [PTR])
    shared = follow.arguments[0]
    seen = follow.cell(I32, ir.Constant(I32, 0))
    with follow.forever() as leave:
        with follow.forever() as ready:
            now = follow.builder.load_atomic(follow.at(shared, _GENERATION), "acquire", 4, typ=I32)
            ready(follow.builder.icmp_signed("!=", now, seen.get()))
            _futex(follow, shared, _GENERATION, _FUTEX_WAIT, follow.builder.zext(seen.get(), I64))
        seen.set(follow.builder.add(seen.get(), ir.Constant(I32, 1)))
        # Looked up first: once all are counted the next list, which may be the last, can begin.
        stop = follow.load(I64, shared, _STOP)
        follow.builder.call(module.globals["work"], [shared])
        _count(follow, shared, _LEFT, follow.int(1))
        leave(follow.less(0, stop))
    follow.end()


def _emit_work(module: Module) -> None:
    body = Body(module, "work", [PTR])
    (shared,) = body.arguments
    builder = body.builder
    kernel = ir.FunctionType(VOID, [PTR, I64, PTR])
    operations, step, counters = (body.load(PTR, shared, place) for place in (_OPERATIONS, _STEP, _COUNTERS))
    wanted = body.cell(I64, body.int(0))
    mine = body.cell(I64)
    with body.loop(0, body.load(I64, shared, _COUNT)) as index:
        operation = body.at(operations, body.mul(index, _OPERATION_BYTES))
        function = body.load(kernel.as_pointer(), operation, 0)
        arguments = body.load(PTR, operation, 8)
        tasks = body.load(I64, step, body.mul(body.load(I64, operation, 16), 8))
        counter = body.at(counters, body.mul(index, 64))
        mine.set(body.int(0))
        with body.forever() as leave:
            task = builder.atomic_rmw("add", counter, ir.Constant(I64, 1), "monotonic")
            leave(builder.icmp_signed(">=", task, tasks))
            builder.call(function, [arguments, task, step])
            mine.set(body.add(mine.get(), 1))
        wanted.set(body.add(wanted.get(), tasks))
        with body.when(body.less(0, mine.get())):
            _count(body, shared, _DONE, mine.get())
        with body.when(body.equal(body.rem(index, _OFFERS), _OFFERS - 1)):
            body.call("syscall", I64, body.int(_SCHED_YIELD), variadic=True)
        _await(body, shared, _DONE, wanted.get())
    body.end()


def _count(body: Body, shared: Value, place: int, amount: Value) -> None:
    """Adds to a number, and wakes those who sleep until it grows."""
    body.builder.atomic_rmw("add", body.at(shared, place), amount, "seq_cst")
    asleep = body.builder.load_atomic(body.at(shared, _ASLEEP), "seq_cst", 8, typ=I64)
    with body.when(body.less(0, asleep)):
        _futex(body, shared, place, _FUTEX_WAKE, body.load(I64, shared, _THREADS))


def _await(body: Body, shared: Value, place: int, wanted: Value) -> None:
    """Waits until a number is as large as `wanted`: awake for a moment, then asleep.

    A thread that stayed awake would keep its core from the one that it waits for, when the system has given that one's
    core to something else.
    """
    builder = body.builder
    looks = body.cell(I64, body.int(0))
    with body.forever() as leave:
        now = builder.load_atomic(body.at(shared, place), "acquire", 8, typ=I64)
        leave(builder.icmp_signed(">=", now, wanted))
        body.call("llvm.x86.sse2.pause", VOID)
        looks.set(body.add(looks.get(), 1))
        with body.when(body.less(_LOOKS, looks.get())):
            builder.atomic_rmw("add", body.at(shared, _ASLEEP), ir.Constant(I64, 1), "seq_cst")
            again = builder.load_atomic(body.at(shared, place), "seq_cst", 8, typ=I64)
            with body.when(body.less(again, wanted)):
                low = builder.zext(builder.trunc(again, I32), I64)
                _futex(body, shared, place, _FUTEX_WAIT, low)
            builder.atomic_rmw("sub", body.at(shared, _ASLEEP), ir.Constant(I64, 1), "seq_cst")
            looks.set(body.int(0))


def _futex(body: Body, shared: Value, place: int, action: int, value: Value) -> None:
    """Sleeps while the int32 at a place is `value`, or wakes `value` threads that sleep there."""
    numbers = (_FUTEX, body.builder.ptrtoint(body.at(shared, place), I64), action, value, 0, 0, 0)
    body.call("syscall", I64, *(body.int(number) for number in numbers), variadic=True)


class OperationList:
    """Operations as the workers read them: (kernel's address, arguments, index of the number of tasks)."""

    def __init__(self, operations: Sequence[tuple[int, Sequence[int], int]]) -> None:
        self._arguments = [np.array(arguments, np.int64) for _, arguments, _ in operations]
        self.table = np.array(
            [
                (kernel, arguments.ctypes.data, tasks)
                for (kernel, _, tasks), arguments in zip(operations, self._arguments, strict=True)
            ],
            np.int64,
        )
        self.counters = np.zeros((len(operations), 8), np.int64)


class Workers:
    """The threads of one engine. `run` belongs to one thread, which works along with the others."""

    def __init__(self, machine: Machine, threads: int) -> None:
        self._machine = machine
        self._shared = _aligned(_SHARED_BYTES // 8)
        self._set(_THREADS, threads)
        entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        self._lead = entry(machine.address("lead"))
        self._follow = entry(machine.address("follow"))
        shared = (self._shared.ctypes.data,)
        self._threads = [
            threading.Thread(target=self._follow, args=shared, name=f"engine-worker-{index}", daemon=True)
            for index in range(1, threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, operations: OperationList, step: NDArray[np.int64]) -> None:
        """Runs a list to its end. Other Python threads go on meanwhile."""
        operations.counters[:] = 0
        self._set(_OPERATIONS, operations.table.ctypes.data)
        self._set(_COUNT, len(operations.table))
        self._set(_STEP, step.ctypes.data)
        self._set(_COUNTERS, operations.counters.ctypes.data)
        self._lead(self._shared.ctypes.data)

    def close(self) -> None:
        """Ends the threads."""
        self._set(_STOP, 1)
        self._set(_COUNT, 0)
        self._lead(self._shared.ctypes.data)
        for thread in self._threads:
            thread.join()

    def _set(self, place: int, value: int) -> None:
        self._shared[place // 8] = value


def _aligned(count: int) -> NDArray[np.int64]:
    raw = np.zeros(count + 8, np.int64)
    start = -raw.ctypes.data % 64 // 8
    return raw[start : start + count]
