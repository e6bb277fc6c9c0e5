"""Writes the factors of adapters in the order in which `lora.py` reads them: one pass where torch makes ten."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from llvmlite import ir
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import (
    F32X,
    I8X,
    I16X,
    I32,
    I64,
    LANES,
    PTR,
    Body,
    Module,
    Value,
)
from argosy_services.engine.torch_engine.native.gemm import Format
from argosy_services.engine.torch_engine.native.instructions import from_bfloat
from argosy_services.engine.torch_engine.native.layout import Factor, Reader
from argosy_services.engine.torch_engine.native.rows import largest_of, quantizing


class FactorWriter:
    """Writes factors for the kernels of a format; for any thread.

    A factor is a matrix `[outputs, size]`, bfloat16, or float32 where the format is. It becomes
    `[outputs / 16, padded / together, 16, together]`: for int8 unsigned bytes, 128 too large, and the scale of each
    output, float32; elsewhere its numbers as they are. What is added up to `padded` and up to the next multiple of 16
    outputs stands for zeros.
    """

    def __init__(self, form: Format) -> None:
        """`form` is that of the factors, the `companion` of the base's."""
        self.scaled = form.name == "int8"
        self.width = 1 if self.scaled else 4 // form.together
        """Bytes of a number."""
        self.dtype = torch.float32 if form.name == "float32" else torch.bfloat16
        self._machine = Machine(compiled(lambda: _module(form), f"factors {form.name}", form.processor))
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._write = kind(self._machine.address("write"))

    def __call__(self, factors: NDArray[np.int64]) -> None:
        """Writes some, `[factors, fields of layout.Factor]`, into memory that is zero."""
        self._write(factors.ctypes.data, len(factors))


def emit_write(module: Module, form: Format) -> None:
    """Writes `write`; its arguments are `layout.Factor`s and their number."""
    body = Body(module, "write", [PTR, I64])
    table, count = body.arguments
    write = _quantized if form.name == "int8" else _exact
    with body.loop(0, count) as number:
        get = Factor.reader(body, body.at(table, body.mul(number, 8 * len(Factor.names))))
        with body.loop(0, get("outputs")) as row:
            write(body, form, get, row)
    body.end()


def _module(form: Format) -> Module:
    module = Module("factors", form.processor)
    emit_write(module, form)
    return module


def _quantized(body: Body, form: Format, get: Reader, row: Value) -> None:
    together, size = form.together, get("size")
    values = body.at(get.pointer("matrix"), body.mul(row, body.mul(size, 2)))
    largest = body.cell(F32X, body.number(0.0))

    def compare(value: Value, _: Value) -> None:
        largest.set(body.larger(body.absolute(value), largest.get()))

    _each(body, values, size, compare)
    scale, inverse = quantizing(body, body.top(largest.get()), largest_of(I8X))
    body.store(scale, get.pointer("scales"), body.mul(row, 4))
    factor, lane = body.splat(inverse), _lane(body, get, row, 1, together)
    words_kind = ir.VectorType(ir.IntType(8 * together), LANES // together)

    def store(value: Value, index: Value) -> None:
        whole = body.to_int(body.nearest(body.fmul(value, factor)))
        bytes_ = body.builder.trunc(body.builder.add(whole, body.whole(128)), I8X)
        words = body.builder.bitcast(bytes_, words_kind)
        for number in range(words_kind.count):
            word = body.builder.extract_element(words, ir.Constant(I32, number))
            # A step along the inputs takes a line of all sixteen outputs.
            body.store(word, lane, body.mul(body.add(body.div(index, together), number), together * LANES))

    _each(body, values, size, store)


def _exact(body: Body, form: Format, get: Reader, row: Value) -> None:
    together, size = form.together, get("size")
    width = 4 // together
    kind = ir.IntType(8 * width)
    values = body.at(get.pointer("matrix"), body.mul(row, body.mul(size, width)))
    lane = _lane(body, get, row, width, together)
    with body.loop(0, size) as index:
        line = body.mul(body.div(index, together), 4 * LANES)
        value = body.load(kind, values, body.mul(index, width))
        body.store(value, lane, body.add(line, body.mul(body.rem(index, together), width)))


def _lane(body: Body, get: Reader, row: Value, width: int, together: int) -> Value:
    """Where the numbers of an output begin."""
    chunk = body.mul(body.div(row, LANES), body.mul(get("padded"), LANES * width))
    return body.at(get.pointer("out"), body.add(chunk, body.mul(body.rem(row, LANES), width * together)))


def _each(body: Body, values: Value, size: Value, do: Callable[[Value, Value], None]) -> None:
    """Does something with every sixteen bfloat16 of a row, as float32, and their index; what is beyond the row is 0."""
    whole = body.mul(body.div(size, LANES), LANES)
    with body.loop(0, whole, LANES) as index:
        do(from_bfloat(body, body.load(I16X, values, body.mul(index, 2))), index)
    with body.when(body.less(whole, size)):
        inside = body.below(body.sub(size, whole))
        nothing = ir.Constant(I16X, [0] * LANES)
        at = body.at(values, body.mul(whole, 2))
        name = f"llvm.masked.load.v{LANES}i16.p0"
        do(from_bfloat(body, body.call(name, I16X, at, ir.Constant(I32, 2), inside, nothing)), whole)
