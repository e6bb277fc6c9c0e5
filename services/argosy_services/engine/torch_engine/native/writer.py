"""Writes matrices in the order in which the kernels read them: one pass where torch makes ten."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from llvmlite import ir
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import (
    F32,
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
# What two vectors of eight exchange: the lower and the upper numbers of each half, one, two or four at a time.
_SINGLES = ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))
_PAIRS = ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
_HALVES = ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))


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
        if form.name in LARGEST:
            with body.loop(0, get("outputs"), LANES) as first:
                _quantized(body, form, get, first, _KINDS[source])
        else:
            with body.loop(0, get("outputs")) as row:
                _exact(body, form, get, row)
    body.end()


def _sources(form: Format) -> list[str]:
    return [*_DTYPES] if form.name in LARGEST else [form.name]


def _module(form: Format) -> Module:
    module = Module("writer", form.processor)
    for source in _sources(form):
        emit_write(module, form, source)
    return module


def _quantized(body: Body, form: Format, get: Reader, first: Value, kind: ir.VectorType) -> None:
    """Writes sixteen outputs, which lie side by side; those that are not there become zeros."""
    count, scratch = body.min(body.sub(get("outputs"), first), LANES), body.scratch(64 * LANES)

    def begin(lane: Value) -> Value:
        row = body.add(first, body.min(lane, body.sub(count, 1)))
        return body.at(get.pointer("matrix"), body.mul(row, body.mul(get("size"), bytes_of(kind.element))))

    with body.loop(0, LANES) as lane:
        body.store(_largest(body, begin(lane), get("size"), kind), scratch, body.mul(lane, 64))
    tops = _tops(body, [body.load(F32X, scratch, 64 * lane) for lane in range(LANES)])
    scales, factors = quantizing(body, tops, LARGEST[form.name])
    body.store(scales, scratch)
    with body.loop(0, count) as lane:
        scale = body.load(F32, scratch, body.mul(lane, 4))
        body.store(scale, get.pointer("scales"), body.mul(body.add(first, lane), 4))
    body.store(body.builder.select(body.below(count), factors, body.number(0.0)), scratch)
    rows = [begin(lane) for lane in range(LANES)]
    lanes, step = _lane(body, form, get, first)
    word = ir.VectorType(ir.IntType(8 * _WIDTHS[form.name] * form.together), LANES // 2)

    def store(index: Value, left: Value | None) -> None:
        words = []
        for lane, row in enumerate(rows):
            factor = body.splat(body.load(F32, scratch, 4 * lane))
            value = body.fmul(_numbers(body, row, kind, index, left), factor)
            words.append(_words(body, form, body.to_int(body.nearest(value))))
        line = body.mul(body.div(index, form.together), step)
        for number, halves in enumerate(_columns(body, words)):
            for half, value in enumerate(halves):
                place = body.add(line, body.mul(step, number), half * word.count * bytes_of(word.element))
                body.store(body.builder.trunc(value, word) if word.element != I32 else value, lanes, place)

    _each(body, get("size"), store)


def _largest(body: Body, row: Value, size: Value, kind: ir.VectorType) -> Value:
    """The largest magnitudes of every sixteenth number of a row."""
    largest = body.cell(F32X, body.number(0.0))

    def compare(index: Value, left: Value | None) -> None:
        largest.set(body.larger(body.absolute(_numbers(body, row, kind, index, left)), largest.get()))

    _each(body, size, compare)
    return largest.get()


def _tops(body: Body, rows: Sequence[Value]) -> Value:
    """The largest lane of each of sixteen vectors."""
    floats, words = (ir.VectorType(element, LANES // 2) for element in (F32, I32))
    narrow = [body.builder.bitcast(body.larger(*body.halves(row)), words) for row in rows]
    first, second = (
        functools.reduce(body.larger, [body.builder.bitcast(column, floats) for column in _turned(body, some)])
        for some in (narrow[: LANES // 2], narrow[LANES // 2 :])
    )
    return _shuffled(body, first, second, range(LANES))


def _words(body: Body, form: Format, whole: Value) -> Value:
    """Sixteen whole numbers of an output, neighbours together in int32s."""
    if form.name == "int8":
        whole = body.builder.add(whole, body.whole(128))
    narrow = body.builder.trunc(whole, I8X if form.name == "int8" else I16X)
    bits, words = 8 * _WIDTHS[form.name] * form.together, LANES // form.together
    joined = body.builder.bitcast(narrow, ir.VectorType(ir.IntType(bits), words))
    return joined if bits == I32.width else body.builder.zext(joined, ir.VectorType(I32, words))


def _columns(body: Body, rows: Sequence[Value]) -> list[tuple[Value, Value]]:
    """The columns of sixteen rows of four or eight int32s: of the first eight rows, and of the others."""
    upper, lower = rows[:8], rows[8:]
    if rows[0].type.count == 8:
        return list(zip(_turned(body, upper), _turned(body, lower), strict=True))
    turned = _turned(body, [_shuffled(body, *both, range(8)) for both in zip(upper, lower, strict=True)])
    return list(zip(turned[:4], turned[4:], strict=True))


def _turned(body: Body, rows: Sequence[Value]) -> list[Value]:
    """Eight rows of eight int32s, transposed: each exchange is one instruction of AVX2."""
    twos = [_shuffled(body, rows[at], rows[at + 1], places) for at in (0, 2, 4, 6) for places in _SINGLES]
    fours = [_shuffled(body, twos[at], twos[at + 2], places) for at in (0, 1, 4, 5) for places in _PAIRS]
    return [_shuffled(body, fours[at], fours[at + 4], places) for places in _HALVES for at in range(4)]


def _shuffled(body: Body, first: Value, second: Value, places: Sequence[int]) -> Value:
    return body.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(places)), list(places)))


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


def _each(body: Body, size: Value, do: Callable[[Value, Value | None], None]) -> None:
    """Does something at every sixteenth number of a row; for the last time with how many are left, if it is fewer."""
    whole = body.mul(body.div(size, LANES), LANES)
    with body.loop(0, whole, LANES) as index:
        do(index, None)
    with body.when(body.less(whole, size)):
        do(whole, body.sub(size, whole))


def _numbers(body: Body, row: Value, kind: ir.VectorType, index: Value, left: Value | None) -> Value:
    """Sixteen numbers of a row as float32, or `left` of them and zeros."""
    at = body.at(row, body.mul(index, bytes_of(kind.element)))
    if left is None:
        value = body.load(kind, at)
    else:
        nothing = ir.Constant(kind, [0.0 if kind is F32X else 0] * LANES)
        name = f"llvm.masked.load.v{LANES}{'f32' if kind is F32X else 'i16'}.p0"
        value = body.call(name, kind, at, ir.Constant(I32, bytes_of(kind.element)), body.below(left), nothing)
    return value if kind is F32X else from_bfloat(body, value)
