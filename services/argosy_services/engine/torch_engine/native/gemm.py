"""Products of a step's rows with a weight matrix, for each format of weights.

A task is a chunk of columns and at most `ROWS` rows. Weights are packed so that a chunk is one stream: for each step
along the inputs, one vector for every 16 columns. A tile of up to `height` rows and one chunk is summed in registers.
However many rows a tile has, each of its sums is made in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    BF16X,
    BYTES,
    F32,
    F32X,
    HALVES,
    I32,
    I32X,
    I64,
    LANES,
    PTR,
    Body,
    Cell,
    Value,
)
from argosy_services.engine.torch_engine.native.layout import GROUP, LEVELS, Product, Step

# Rows that share one pass over a chunk of weights.
ROWS = 128
# Steps along the inputs that stand one after another in a loop.
_UNROLL = 4
# With so few rows the time goes into reading weights, which are asked for so many bytes ahead of their use. More rows
# leave time to ask for the whole chunk that the thread takes next; prompts multiply each weight so often that they need
# nothing.
_FEW = 2
_AHEAD = 2_048


class Format(Protocol):
    """How weights are stored and multiplied. `vectors` x 16 columns make a chunk; `inputs` is the format that rows take
    before they are multiplied."""

    name: str
    inputs: str
    height: int
    vectors: int

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """The float32 sums `[rows][vectors]` of a tile."""
        ...


@dataclass(frozen=True, slots=True)
class Operands:
    """Where a tile's operands are. Weights `ahead` bytes further on are asked for early, none where it is None.
    `scales` and `offsets` belong to groups of quantized inputs, see `rows.py`."""

    weights: Value
    inputs: Value
    size: Value
    ahead: Value
    scales: Value = None
    offsets: Value = None


class Int8:
    """Bytes: weights with a scale per column, inputs with one for each group of 64 (VNNI).

    Weights are stored as unsigned bytes, 128 too large; `offsets` take that away again.
    """

    name = "int8"
    inputs = "int8"
    height = 6
    vectors = 4
    group_bytes = GROUP // 4 * vectors * 64

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """See `Format`."""
        sums = _cells(body, F32X, rows, self.vectors)
        parts = _cells(body, I32X, rows, self.vectors)
        groups = body.div(operands.size, GROUP)
        with body.loop(0, groups) as group:
            for row in range(rows):
                offset = body.splat(body.load(I32, operands.offsets, self._group(body, groups, row, group)))
                for cell in parts[row]:
                    cell.set(offset)
            stream = body.at(operands.weights, body.mul(group, self.group_bytes))
            inputs = body.at(operands.inputs, body.mul(group, GROUP))
            with body.loop(0, GROUP // 4, _UNROLL) as start:
                self._multiply_some(body, parts, replace(operands, weights=stream, inputs=inputs), start)
            for row in range(rows):
                scale = body.splat(body.load(F32, operands.scales, self._group(body, groups, row, group)))
                for vector, (cell, part) in enumerate(zip(sums[row], parts[row], strict=True)):
                    factor = self._factor(body, scale, stream, vector)
                    cell.set(body.fma(body.to_float(part.get()), factor, cell.get()))
        return _values(sums)

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        """The chunk's bytes for each of the steps that stand one after another."""
        for more in range(_UNROLL):
            yield _chunk(
                body, BYTES, operands.weights, body.add(start, more), vectors=self.vectors, ahead=operands.ahead
            )

    def _factor(self, body: Body, scale: Value, stream: Value, vector: int) -> Value:
        """What a group's sums are multiplied by, where its inputs have a scale."""
        return scale

    def _multiply_some(self, body: Body, parts: list[list[Cell]], operands: Operands, start: Value) -> None:
        """Four inputs of every row at a time."""
        totals = _values(parts)
        for more, weights in enumerate(self._weights(body, operands, start)):
            at = body.mul(body.add(start, more), 4)
            for row, total in enumerate(totals):
                four = body.load(I32, operands.inputs, body.add(body.mul(operands.size, row), at))
                totals[row] = [body.fours(part, weight, four) for part, weight in zip(total, weights, strict=True)]
        _set(parts, totals)

    @staticmethod
    def _group(body: Body, groups: Value, row: int, group: Value) -> Value:
        return body.mul(body.add(body.mul(groups, row), group), 4)


class Int4(Int8):
    """Half bytes that name one of 16 levels (`LEVELS`), with a scale for each column and group of 64 inputs.

    A group is its scales in bfloat16, then vectors that hold two steps each: the first one in the lower halves. In
    registers they become the bytes that `Int8` multiplies.
    """

    name = "int4"
    group_bytes = Int8.vectors * LANES * 2 + Int8.group_bytes // 2

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        lines = body.at(operands.weights, self.vectors * LANES * 2)
        for pair in range(_UNROLL // 2):
            step = body.add(body.div(start, 2), pair)
            both = _chunk(body, BYTES, lines, step, vectors=self.vectors, ahead=operands.ahead)
            yield [body.look_up(LEVELS, body.low_halves(line)) for line in both]
            yield [body.look_up(LEVELS, body.high_halves(line)) for line in both]

    def _factor(self, body: Body, scale: Value, stream: Value, vector: int) -> Value:
        own = body.builder.fpext(body.load(BF16X, stream, vector * LANES * 2), F32X)
        return body.fmul(scale, own)


class BFloat16:
    """Pairs of bfloat16, summed in float32."""

    name = "bfloat16"
    inputs = "bfloat16"
    height = 6
    vectors = 4

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """See `Format`."""
        return _stream(body, rows, self.vectors, operands, kind=HALVES, join=self._join)

    @staticmethod
    def _join(body: Body, total: Value, weight: Value, given: Value) -> Value:
        return body.pairs(total, weight, given)


class Float32:
    """float32, for any processor."""

    name = "float32"
    inputs = "float32"
    height = 6
    vectors = 4

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """See `Format`."""
        return _stream(body, rows, self.vectors, operands, kind=F32X, join=self._join)

    @staticmethod
    def _join(body: Body, total: Value, weight: Value, given: Value) -> Value:
        return body.fma(weight, body.splat(body.builder.bitcast(given, F32)), total)


FORMATS: dict[str, Format] = {form.name: form for form in (Int4(), Int8(), BFloat16(), Float32())}


def emit_product(module: ir.Module, form: Format) -> None:
    """Writes the kernel `product_<format>`; its arguments are a `layout.Product`."""
    body = Body(module, f"product_{form.name}", [PTR, I64, PTR])
    arguments, task, step = body.arguments
    get = Product.reader(body, arguments)
    size, chunks, stride, ahead = get("size"), get("chunks"), get("stride"), get("ahead")
    row_bytes = get("row_bytes")
    keep = body.builder.trunc(get("accumulate"), ir.IntType(1))
    places = {name: get.pointer(name) for name in ("inputs", "scales", "offsets", "out", "weight_scales", "bias")}
    total = body.load(I64, step, 8 * Step.ROWS)
    chunk = body.rem(task, chunks)
    first = body.mul(body.div(task, chunks), ROWS)
    last = body.min(body.add(first, ROWS), total)
    columns = form.vectors * LANES
    weights = body.at(get.pointer("weights"), body.mul(chunk, get("chunk_bytes")))
    column_bytes = body.mul(chunk, columns * 4)
    groups = body.mul(body.div(size, GROUP), 4)

    def tile(row: Value, rows: int, ahead: Value) -> None:
        operands = Operands(
            weights=weights,
            inputs=body.at(places["inputs"], body.mul(row, row_bytes)),
            scales=body.at(places["scales"], body.mul(row, groups)),
            offsets=body.at(places["offsets"], body.mul(row, groups)),
            size=size,
            ahead=ahead,
        )
        sums = form.multiply(body, rows, operands)
        out = body.at(places["out"], body.add(body.mul(row, stride), column_bytes))
        for vector in range(form.vectors):
            place = vector * 64
            weight_scale = body.load(F32X, places["weight_scales"], body.add(column_bytes, place))
            addend = body.load(F32X, places["bias"], body.add(column_bytes, place))
            for index in range(rows):
                offset = body.add(body.mul(stride, index), place)
                value = body.fma(sums[index][vector], weight_scale, addend)
                kept = body.load(F32X, out, offset)
                value = body.fadd(value, body.builder.select(keep, kept, body.number(0.0)))
                body.store(value, out, offset)

    whole = body.sub(last, body.rem(body.sub(last, first), form.height))
    many = body.less(ROWS, total)
    for condition, asked in ((many, None), (body.builder.not_(many), ahead)):
        with body.when(condition), body.loop(first, whole, form.height) as row:
            tile(row, form.height, asked)
    rest = body.sub(last, whole)
    for rows in range(1, form.height):
        with body.when(body.equal(rest, rows)):
            tile(whole, rows, _AHEAD if rows <= _FEW else ahead)
    body.end()


def _stream(
    body: Body, rows: int, vectors: int, operands: Operands, *, kind: ir.Type, join: Callable[..., Value]
) -> list[list[Value]]:
    """Sums along inputs, four bytes of a row at a time."""
    sums = _cells(body, F32X, rows, vectors)
    per_step = 2 if kind is HALVES else 1
    row_bytes = body.mul(operands.size, 4 // per_step)
    with body.loop(0, body.div(operands.size, per_step), _UNROLL) as start:
        totals = _values(sums)
        for more in range(_UNROLL):
            step = body.add(start, more)
            weights = _chunk(body, kind, operands.weights, step, vectors=vectors, ahead=operands.ahead)
            for row, total in enumerate(totals):
                given = body.load(I32, operands.inputs, body.add(body.mul(row_bytes, row), body.mul(step, 4)))
                totals[row] = [join(body, part, weight, given) for part, weight in zip(total, weights, strict=True)]
        _set(sums, totals)
    return _values(sums)


def _chunk(body: Body, kind: ir.Type, stream: Value, step: Value, *, vectors: int, ahead: Value) -> list[Value]:
    """The weights of one step along the inputs."""
    line = body.at(stream, body.mul(step, vectors * 64))
    if ahead is not None:
        far = body.at(line, ahead)
        for vector in range(vectors):
            body.prefetch(far, vector * 64)
    return [body.load(kind, line, vector * 64, align=64) for vector in range(vectors)]


def _cells(body: Body, kind: ir.Type, rows: int, vectors: int) -> list[list[Cell]]:
    zero = ir.Constant(kind, [0.0 if kind is F32X else 0] * LANES)
    return [[body.cell(kind, zero) for _ in range(vectors)] for _ in range(rows)]


def _values(cells: list[list[Cell]]) -> list[list[Value]]:
    return [[cell.get() for cell in row] for row in cells]


def _set(cells: list[list[Cell]], values: list[list[Value]]) -> None:
    for row, row_values in zip(cells, values, strict=True):
        for cell, value in zip(row, row_values, strict=True):
            cell.set(value)
