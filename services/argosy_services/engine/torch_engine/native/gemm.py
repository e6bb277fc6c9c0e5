"""Products of a step's rows with a weight matrix, for each format of weights.

A task is a chunk of `CHUNK` columns and at most `ROWS` rows. Weights are packed so that the columns whose sums fit into
registers beside each other are one stream: for each step along the inputs, one vector for every 16 columns. A tile of
up to six rows and one stream is summed in registers. However many rows a tile has, each of its sums is made in the same
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
    I16X,
    I32,
    I32X,
    I64,
    LANES,
    PTR,
    Body,
    Cell,
    Module,
    Value,
    bytes_of,
)
from argosy_services.engine.torch_engine.native.layout import CHUNK, GROUP, LEVELS, Product, Step
from argosy_services.engine.torch_engine.native.processor import Processor

# Rows that share one pass over a chunk of weights, and those whose sums are in registers at once.
ROWS = 128
HEIGHT = 6
# Steps along the inputs that stand one after another in a loop. LLVM orders the sums of integers anew, and takes more
# registers for them than narrow processors have; pairs of bfloat16 that are taken apart need more as well.
_UNROLL = 4
_INTEGERS_UNROLL = {True: 4, False: 2}
_PAIRS_UNROLL = {True: 4, False: 1}
# With so few rows the time goes into reading weights, which are asked for so many bytes ahead of their use. More rows
# leave time to ask for the whole chunk that the thread takes next; prompts multiply each weight so often that they need
# nothing.
_FEW = 2
_AHEAD = 2_048


class Format(Protocol):
    """How weights are stored and multiplied on a kind of processor."""

    name: ClassVar[str]
    companion: ClassVar[str]
    """The format of matrices whose exactness decides about the model's; also of the factors of adapters."""

    @property
    def processor(self) -> Processor:
        """What the kernels are written for."""
        ...

    @property
    def inputs(self) -> str:
        """The type that rows have before they are multiplied."""
        ...

    @property
    def vectors(self) -> int:
        """How many times 16 columns make a stream."""
        ...

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


@dataclass(frozen=True)
class Int8:
    """Bytes: weights with a scale per column, inputs with one for each group of 64.

    Inputs are int8 where the processor multiplies bytes, and int16 elsewhere. Weights are stored as unsigned bytes, 128
    too large; `offsets` take that away again.
    """

    processor: Processor
    name: ClassVar[str] = "int8"
    companion: ClassVar[str] = "int8"

    @property
    def inputs(self) -> str:
        """See `Format`."""
        return "int8" if self.processor.wide else "int16"

    @property
    def vectors(self) -> int:
        """See `Format`."""
        return self.processor.vectors

    @property
    def group_bytes(self) -> int:
        """Bytes of a group of inputs in one stream."""
        return GROUP * LANES * self.vectors

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """See `Format`."""
        sums = _cells(body, F32X, rows, self.vectors)
        parts = _cells(body, I32X, rows, self.vectors)
        groups = body.div(operands.size, GROUP)
        steps = GROUP // self.processor.together
        with body.loop(0, groups) as group:
            for row in range(rows):
                offset = body.splat(body.load(I32, operands.offsets, self._group(body, groups, row, group)))
                for cell in parts[row]:
                    cell.set(offset)
            stream = body.at(operands.weights, body.mul(group, self.group_bytes))
            inputs = body.at(operands.inputs, body.mul(group, steps * 4))
            with body.loop(0, steps, self._unroll) as start:
                self._multiply_some(body, parts, replace(operands, weights=stream, inputs=inputs), start)
            for row in range(rows):
                scale = body.splat(body.load(F32, operands.scales, self._group(body, groups, row, group)))
                for vector, (cell, part) in enumerate(zip(sums[row], parts[row], strict=True)):
                    factor = self._factor(body, scale, stream, vector)
                    cell.set(body.fma(body.to_float(part.get()), factor, cell.get()))
        return _values(sums)

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        """The stream's bytes for each of the steps that stand one after another."""
        return _lines(body, body.byte_line, operands, start, self._unroll, vectors=self.vectors)

    def _factor(self, body: Body, scale: Value, stream: Value, vector: int) -> Value:
        """What a group's sums are multiplied by, where its inputs have a scale."""
        return scale

    def _multiply_some(self, body: Body, parts: list[list[Cell]], operands: Operands, start: Value) -> None:
        """As many inputs of every row as are multiplied at once."""
        totals = _values(parts)
        row_bytes = body.mul(operands.size, 4 // self.processor.together)
        for more, weights in enumerate(self._weights(body, operands, start)):
            at = body.mul(body.add(start, more), 4)
            for row, total in enumerate(totals):
                given = body.load(I32, operands.inputs, body.add(body.mul(row_bytes, row), at))
                totals[row] = [body.dots(part, weight, given) for part, weight in zip(total, weights, strict=True)]
        _set(parts, totals)

    @property
    def _unroll(self) -> int:
        return _INTEGERS_UNROLL[self.processor.wide]

    @staticmethod
    def _group(body: Body, groups: Value, row: int, group: Value) -> Value:
        return body.mul(body.add(body.mul(groups, row), group), 4)


class Int4(Int8):
    """Half bytes that name one of 16 levels (`LEVELS`), with a scale for each column and group of 64 inputs.

    A group is its scales in bfloat16, then lines that hold two steps each: the first one in the lower halves. In
    registers they become the bytes that `Int8` multiplies.
    """

    name = "int4"

    @property
    def group_bytes(self) -> int:
        """Bytes of a group of inputs in one stream."""
        return LANES * self.vectors * (2 + GROUP // 2)

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        lines = replace(operands, weights=body.at(operands.weights, self.vectors * LANES * 2))
        pairs = _lines(body, body.byte_line, lines, body.div(start, 2), self._unroll // 2, vectors=self.vectors)
        for both in pairs:
            yield [body.look_up(LEVELS, body.low_halves(line)) for line in both]
            yield [body.look_up(LEVELS, body.high_halves(line)) for line in both]

    def _factor(self, body: Body, scale: Value, stream: Value, vector: int) -> Value:
        return body.fmul(scale, body.from_bfloat(body.load(I16X, stream, vector * LANES * 2)))


@dataclass(frozen=True)
class BFloat16:
    """Pairs of bfloat16, summed in float32."""

    processor: Processor
    name: ClassVar[str] = "bfloat16"
    companion: ClassVar[str] = "bfloat16"

    @property
    def inputs(self) -> str:
        """See `Format`."""
        return "bfloat16"

    @property
    def vectors(self) -> int:
        """See `Format`."""
        return self.processor.vectors

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """See `Format`."""
        unroll = _PAIRS_UNROLL[self.processor.bfloat16]
        return _stream(body, rows, self.vectors, operands, per_step=2, unroll=unroll, join=self._join)

    @staticmethod
    def _join(body: Body, total: Value, weight: Value, given: Value) -> Value:
        return body.pairs(total, weight, given)


@dataclass(frozen=True)
class Float32:
    """float32, for any processor."""

    processor: Processor
    name: ClassVar[str] = "float32"
    companion: ClassVar[str] = "float32"

    @property
    def inputs(self) -> str:
        """See `Format`."""
        return "float32"

    @property
    def vectors(self) -> int:
        """See `Format`."""
        return self.processor.vectors

    def multiply(self, body: Body, rows: int, operands: Operands) -> list[list[Value]]:
        """See `Format`."""
        return _stream(body, rows, self.vectors, operands, per_step=1, unroll=_UNROLL, join=self._join)

    @staticmethod
    def _join(body: Body, total: Value, weight: Value, given: Value) -> Value:
        return body.fma(weight, body.splat(body.builder.bitcast(given, F32)), total)


_FORMATS: dict[str, Callable[[Processor], Format]] = {kind.name: kind for kind in (Int4, Int8, BFloat16, Float32)}


def format_of(name: str, processor: Processor) -> Format:
    """A format of weights on a kind of processor. Raises KeyError for an unknown name."""
    return _FORMATS[name](processor)


def emit_product(module: Module, form: Format) -> None:
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
    streams = CHUNK // columns
    chunk_bytes = get("chunk_bytes")
    stream_bytes = body.div(chunk_bytes, streams)
    groups = body.mul(body.div(size, GROUP), 4)

    def tile(number: Value, row: Value, rows: int, ahead: Value) -> None:
        """Computes `rows` rows of one of the chunk's streams."""
        column_bytes = body.mul(body.add(body.mul(chunk, streams), number), columns * 4)
        weights = body.add(body.mul(chunk, chunk_bytes), body.mul(number, stream_bytes))
        operands = Operands(
            weights=body.at(get.pointer("weights"), weights),
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

    whole = body.sub(last, body.rem(body.sub(last, first), HEIGHT))
    rest = body.sub(last, whole)
    many = body.less(ROWS, total)
    with body.loop(0, streams) as number:
        for condition, asked in ((many, None), (body.builder.not_(many), ahead)):
            with body.when(condition), body.loop(first, whole, HEIGHT) as row:
                tile(number, row, HEIGHT, asked)
        for rows in range(1, HEIGHT):
            with body.when(body.equal(rest, rows)):
                tile(number, whole, rows, _AHEAD if rows <= _FEW else ahead)
    body.end()


def _stream(
    body: Body,
    rows: int,
    vectors: int,
    operands: Operands,
    *,
    per_step: int,
    unroll: int,
    join: Callable[..., Value],
) -> list[list[Value]]:
    """Sums along inputs, four bytes of a row at a time."""
    sums = _cells(body, F32X, rows, vectors)
    row_bytes = body.mul(operands.size, 4 // per_step)
    kind = F32X if per_step == 1 else I32X
    with body.loop(0, body.div(operands.size, per_step), unroll) as start:
        totals = _values(sums)
        for more, weights in enumerate(_lines(body, kind, operands, start, unroll, vectors=vectors)):
            at = body.mul(body.add(start, more), 4)
            for row, total in enumerate(totals):
                given = body.load(I32, operands.inputs, body.add(body.mul(row_bytes, row), at))
                totals[row] = [join(body, part, weight, given) for part, weight in zip(total, weights, strict=True)]
        _set(sums, totals)
    return _values(sums)


def _lines(
    body: Body, kind: ir.VectorType, operands: Operands, start: Value, count: int, *, vectors: int
) -> Iterator[list[Value]]:
    """The weights of some steps along the inputs, which stand one after another."""
    width = kind.count * bytes_of(kind.element)
    together = body.at(operands.weights, body.mul(start, vectors * width))
    for step in range(count):
        places = range(step * vectors * width, (step + 1) * vectors * width, width)
        if operands.ahead is not None:
            for place in places:
                if place % 64 == 0:
                    body.prefetch(together, body.add(operands.ahead, place))
        yield [body.load(kind, together, place, align=width) for place in places]


def _cells(body: Body, kind: ir.Type, rows: int, vectors: int) -> list[list[Cell]]:
    zero = ir.Constant(kind, [0.0 if kind is F32X else 0] * LANES)
    return [[body.cell(kind, zero) for _ in range(vectors)] for _ in range(rows)]


def _values(cells: list[list[Cell]]) -> list[list[Value]]:
    return [[cell.get() for cell in row] for row in cells]


def _set(cells: list[list[Cell]], values: list[list[Value]]) -> None:
    for row, row_values in zip(cells, values, strict=True):
        for cell, value in zip(row, row_values, strict=True):
            cell.set(value)
