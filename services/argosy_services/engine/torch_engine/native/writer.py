"""Writes matrices in the order in which the kernels read them: one pass where torch makes ten."""

from __future__ import annotations

import ctypes
import functools
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
    bytes_of,
)
from argosy_services.engine.torch_engine.native.formats import Format
from argosy_services.engine.torch_engine.native.instructions import from_bfloat
from argosy_services.engine.torch_engine.native.layout import Matrix, Reader
from argosy_services.engine.torch_engine.native.rows import quantizing

LARGEST = {"int8": 127, "int16": 1023}
"""The largest weight of a format; of int16 as much as lets 512 products with inputs of 13 bits be summed in 32."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_WIDTHS = {"int8": 1, "int16": 2, "bfloat16": 2, "float32": 4}
_KINDS = {"float32": F32X, "bfloat16": I16X}


class MatrixWriter:
    """Writes matrices for the kernels of a format; for any thread.

    A matrix `[outputs, size]` becomes streams of 16 outputs times `vectors`, `[outputs / (16 vectors), padded /
    together, vectors, 16, together]`: for int8 unsigned bytes, 128 too large, for int16 numbers of at most 1,023, both
    with the scale of each output, float32; elsewhere its numbers as they are. What is added up to `padded` and up to
    whole streams stands for zeros, or for nothing where a whole column is added.
    """

    def __init__(self, form: Format) -> None:
        self.scaled = form.name in LARGEST
        self.width = _WIDTHS[form.name]
        """Bytes of a number."""
        code = compiled(lambda: _module(form), f"writer {form.name}", form.processor)
        self._machine = Machine(code)
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._write = {_DTYPES[each]: kind(self._machine.address(f"write_{each}")) for each in _sources(form)}
        self.sources = list(self._write)
        """The types of matrices that it takes."""

    def __call__(self, matrices: NDArray[np.int64], dtype: torch.dtype) -> None:
        """Writes some of one type, `[matrices, fields of layout.Matrix]`, into memory that is zero."""
        self._write[dtype](matrices.ctypes.data, len(matrices))


@functools.cache
def writer_of(form: Format) -> MatrixWriter:
    """The writer for a format's matrices. Raises KeyError for int4, which has none."""
    return MatrixWriter(form)


def emit_write(module: Module, form: Format, source: str) -> None:
    """Writes `write_<source>`, for a format; its arguments are `layout.Matrix`s and their number."""
    body = Body(module, f"write_{source}", [PTR, I64])
    table, count = body.arguments
    with body.loop(0, count) as number:
        get = Matrix.reader(body, body.at(table, body.mul(number, 8 * len(Matrix.names))))
        with body.loop(0, get("outputs")) as row:
            if form.name in LARGEST:
                _quantized(body, form, source, get, row)
            else:
                _exact(body, form, get, row)
    body.end()


def _sources(form: Format) -> list[str]:
    return [*_DTYPES] if form.name in LARGEST else [form.name]


def _module(form: Format) -> Module:
    module = Module("writer", form.processor)
    for source in _sources(form):
        emit_write(module, form, source)
    return module


def _quantized(body: Body, form: Format, source: str, get: Reader, row: Value) -> None:
    name, size, kind = form.name, get("size"), _KINDS[source]
    width = bytes_of(kind.element)
    values = body.at(get.pointer("matrix"), body.mul(row, body.mul(size, width)))
    largest = body.cell(F32X, body.number(0.0))

    def compare(value: Value, _: Value) -> None:
        largest.set(body.larger(body.absolute(value), largest.get()))

    _each(body, values, size, kind, compare)
    scale, inverse = quantizing(body, body.top(largest.get()), LARGEST[name])
    body.store(scale, get.pointer("scales"), body.mul(row, 4))
    factor, (lane, step) = body.splat(inverse), _lane(body, form, get, row)
    words_kind = ir.VectorType(ir.IntType(8 * _WIDTHS[name] * form.together), LANES // form.together)

    def store(value: Value, index: Value) -> None:
        whole = body.to_int(body.nearest(body.fmul(value, factor)))
        if name == "int8":
            whole = body.builder.add(whole, body.whole(128))
        narrow = body.builder.trunc(whole, I8X if name == "int8" else I16X)
        words = body.builder.bitcast(narrow, words_kind)
        for number in range(words_kind.count):
            word = body.builder.extract_element(words, ir.Constant(I32, number))
            body.store(word, lane, body.mul(body.add(body.div(index, form.together), number), step))

    _each(body, values, size, kind, store)


def _exact(body: Body, form: Format, get: Reader, row: Value) -> None:
    together, size, width = form.together, get("size"), _WIDTHS[form.name]
    kind = ir.IntType(8 * width)
    values = body.at(get.pointer("matrix"), body.mul(row, body.mul(size, width)))
    lane, step = _lane(body, form, get, row)
    with body.loop(0, size) as index:
        line = body.mul(body.div(index, together), step)
        value = body.load(kind, values, body.mul(index, width))
        body.store(value, lane, body.add(line, body.mul(body.rem(index, together), width)))


def _lane(body: Body, form: Format, get: Reader, row: Value) -> tuple[Value, Value]:
    """Where the numbers of an output begin, and the bytes from one step along the inputs to the next."""
    vectors, word = get("vectors"), _WIDTHS[form.name] * form.together
    step = body.mul(vectors, LANES * word)
    vector = body.div(row, LANES)
    stream = body.mul(body.div(vector, vectors), body.mul(body.div(get("padded"), form.together), step))
    place = body.add(body.mul(body.rem(vector, vectors), LANES * word), body.mul(body.rem(row, LANES), word))
    return body.at(get.pointer("out"), body.add(stream, place)), step


def _each(body: Body, values: Value, size: Value, kind: ir.VectorType, do: Callable[[Value, Value], None]) -> None:
    """Does something with every sixteen numbers of a row, as float32, and their index; what is beyond the row is 0."""
    width = bytes_of(kind.element)

    def wide(value: Value) -> Value:
        return value if kind is F32X else from_bfloat(body, value)

    whole = body.mul(body.div(size, LANES), LANES)
    with body.loop(0, whole, LANES) as index:
        do(wide(body.load(kind, values, body.mul(index, width))), index)
    with body.when(body.less(whole, size)):
        inside = body.below(body.sub(size, whole))
        nothing = ir.Constant(kind, [0.0 if kind is F32X else 0] * LANES)
        at = body.at(values, body.mul(whole, width))
        name = f"llvm.masked.load.v{LANES}{'f32' if kind is F32X else 'i16'}.p0"
        do(wide(body.call(name, kind, at, ir.Constant(I32, width), inside, nothing)), whole)
