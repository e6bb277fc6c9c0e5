"""Formats of weights: how they are stored and multiplied on a kind of processor; see `gemm.py` for their order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
    I16X,
    I32,
    I32X,
    I64,
    LANES,
    Body,
    Cell,
    Value,
    bytes_of,
)
from argosy_services.engine.torch_engine.native.instructions import (
    byte_line,
    dots,
    from_bfloat,
    high_halves,
    look_up,
    low_halves,
    pairs,
    short_dots,
    short_line,
)
from argosy_services.engine.torch_engine.native.layout import GROUP, LEVELS, Reader
from argosy_services.engine.torch_engine.native.panels import LINE, along
from argosy_services.engine.torch_engine.native.processor import Processor

# Steps along the inputs that stand one after another in a loop.
_UNROLL = 4
# Rows at once of bfloat16 where the processor does not multiply it.
_APART = 3
# The sums of a tile, `[rows][vectors]`: while they are made, and when they are there.
Cells = list[list[Cell]]
Tile = list[list[Value]]


@dataclass(frozen=True, slots=True)
class Operands:
    """Where a tile's operands are, `inputs` at the first row of a panel. `scales` and `offsets` belong to groups of
    `group` quantized inputs, see `rows.py`.

    Memory is asked for before it is used. Either weights `ahead` bytes further on, as fast as those of the tile are
    read; or, slower, of each of `asked` as much as one of the tile's vectors has, whose weights begin at `origin`.
    """

    weights: Value
    inputs: Value
    size: Value
    ahead: Value = None
    asked: tuple[Value, ...] = ()
    origin: Value = None
    scales: Value = None
    offsets: Value = None
    group: Value = GROUP


@dataclass(frozen=True)
class Format(ABC):
    """How weights are stored and multiplied on a kind of processor."""

    name: str
    processor: Processor

    @property
    def companion(self) -> Format:
        """The format of matrices whose exactness decides about the model's; also of the factors of adapters."""
        return self

    @property
    @abstractmethod
    def inputs(self) -> str:
        """The type that rows have before they are multiplied."""

    @property
    @abstractmethod
    def together(self) -> int:
        """Neighbouring inputs that are multiplied at once: 32 bits of them."""

    def group(self, get: Reader) -> Value:
        """How many inputs share a scale. A number that is known when a kernel is made lets its loops be shorter."""
        return GROUP

    @abstractmethod
    def multiply(self, body: Body, rows: int, operands: Operands) -> Tile:
        """The float32 sums of a tile."""

    @abstractmethod
    def join(self, body: Body, total: Value, weight: Value, given: Value) -> Value:
        """`total` plus a vector of weights times the inputs in the int32 `given`."""

    def _add(self, body: Body, cells: Cells, operands: Operands, lines: Iterable[list[Value]], start: Value) -> None:
        """Adds, for every row, the products of the lines that stand one after another."""
        totals = [[cell.get() for cell in row] for row in cells]
        at = along(body, body.mul(start, 4))
        for more, weights in enumerate(lines):
            for row, total in enumerate(totals):
                given = body.load(I32, operands.inputs, body.add(at, row * LINE + more * 4))
                totals[row] = [
                    self.join(body, part, weight, given) for part, weight in zip(total, weights, strict=True)
                ]
        for row, total in zip(cells, totals, strict=True):
            for cell, value in zip(row, total, strict=True):
                cell.set(value)


class Exact(Format):
    """Weights as they are, summed in float32: bfloat16 in pairs, or float32, which any processor has."""

    @property
    def inputs(self) -> str:
        """See `Format`."""
        return self.name

    @property
    def together(self) -> int:
        """See `Format`."""
        return 2 if self.name == "bfloat16" else 1

    def multiply(self, body: Body, rows: int, operands: Operands) -> Tile:
        """See `Format`."""
        # Pairs that are taken apart need more registers: fewer rows at once then keep their sums in them.
        apart = self.together == 2 and not self.processor.bfloat16
        height, unroll = (_APART, 1) if apart else (rows, _UNROLL)
        sums: Tile = []
        for first in range(0, rows, height):
            some = replace(operands, inputs=body.at(operands.inputs, first * LINE))
            if first:
                some = replace(some, ahead=None, asked=())
            sums += self._sums(body, min(height, rows - first), some, unroll)
        return sums

    def _sums(self, body: Body, rows: int, operands: Operands, unroll: int) -> Tile:
        kind = I32X if self.together == 2 else F32X
        sums = _cells(body, F32X, rows)
        with body.loop(0, body.div(operands.size, self.together), unroll) as start:
            self._add(body, sums, operands, _lines(body, kind, operands, start, unroll), start)
        return [[cell.get() for cell in row] for row in sums]

    def join(self, body: Body, total: Value, weight: Value, given: Value) -> Value:
        """See `Format`."""
        if self.together == 2:
            return pairs(body, total, weight, given)
        return body.fma(weight, body.splat(body.builder.bitcast(given, F32)), total)


class Int8(Format):
    """Bytes: weights with a scale per column, inputs with one for each group of 64.

    Inputs are int8 where the processor multiplies bytes, and int16 elsewhere. Weights are stored as unsigned bytes, 128
    too large; `offsets` take that away again.
    """

    @property
    def inputs(self) -> str:
        """See `Format`."""
        return "int8" if self.processor.wide else "int16"

    @property
    def together(self) -> int:
        """See `Format`."""
        return self.processor.together

    def _group_bytes(self, body: Body, group: Value) -> Value:
        """Bytes of the weights of a group of inputs in one stream."""
        return body.mul(group, LANES * self.processor.vectors)

    @property
    def _unroll(self) -> int:
        # LLVM orders sums of integers anew, and takes more registers for them than narrow processors have.
        return _UNROLL if self.processor.wide else 2

    def multiply(self, body: Body, rows: int, operands: Operands) -> Tile:
        """See `Format`."""
        sums, parts = _cells(body, F32X, rows), _cells(body, I32X, rows)
        groups = body.div(operands.size, operands.group)
        steps = body.div(operands.group, self.together)
        group_bytes = self._group_bytes(body, operands.group)
        with body.loop(0, groups) as group:
            places = [body.mul(body.add(body.mul(groups, row), group), 4) for row in range(rows)]
            for place, row_parts in zip(places, parts, strict=True):
                offset = self._offset(body, operands, place)
                for part in row_parts:
                    part.set(offset)
            stream = body.at(operands.weights, body.mul(group, group_bytes))
            inputs = body.at(operands.inputs, along(body, body.mul(group, body.mul(steps, 4))))
            here = replace(operands, weights=stream, inputs=inputs)
            with body.loop(0, steps, self._unroll) as start:
                self._add(body, parts, here, self._weights(body, here, start), start)
            for place, row_parts, row_sums in zip(places, parts, sums, strict=True):
                scale = body.splat(body.load(F32, operands.scales, place))
                for vector, (part, total) in enumerate(zip(row_parts, row_sums, strict=True)):
                    factor = self._factor(body, scale, stream, vector)
                    total.set(body.fma(body.to_float(part.get()), factor, total.get()))
        return [[cell.get() for cell in row] for row in sums]

    def join(self, body: Body, total: Value, weight: Value, given: Value) -> Value:
        """See `Format`."""
        return dots(body, total, weight, given)

    def _offset(self, body: Body, operands: Operands, place: Value) -> Value:
        """What a group's sums begin with."""
        return body.splat(body.load(I32, operands.offsets, place))

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        """The stream's weights for each of the steps that stand one after another."""
        return _lines(body, byte_line(body), operands, start, self._unroll)

    def _factor(self, body: Body, scale: Value, stream: Value, vector: int) -> Value:
        """What a group's sums are multiplied by, where its inputs have a scale."""
        return scale


class Int4(Int8):
    """Half bytes that name one of 16 levels (`LEVELS`), with a scale for each column and group of 64 inputs.

    A group is its scales in bfloat16, then lines that hold two steps each: the first one in the lower halves. In
    registers they become the bytes that `Int8` multiplies.
    """

    @property
    def companion(self) -> Format:
        """See `Format`."""
        return Int8("int8", self.processor)

    def _group_bytes(self, body: Body, group: Value) -> Value:
        return LANES * self.processor.vectors * (2 + GROUP // 2)

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        lines = replace(operands, weights=body.at(operands.weights, self.processor.vectors * LANES * 2))
        for both in _lines(body, byte_line(body), lines, body.div(start, 2), self._unroll // 2):
            yield [look_up(body, LEVELS, low_halves(body, line)) for line in both]
            yield [look_up(body, LEVELS, high_halves(body, line)) for line in both]

    def _factor(self, body: Body, scale: Value, stream: Value, vector: int) -> Value:
        return body.fmul(scale, from_bfloat(body, body.load(I16X, stream, vector * LANES * 2)))


class Int16(Int8):
    """Signed numbers in 16 bits: weights of 11 bits with a scale per column, inputs of 13 bits with one for each group.

    bfloat16 has 9 bits. Processors without it multiply half as many again of these in a cycle as of float32. As the
    sums of 512 products still fit into 32 bits, groups are that large.
    """

    @property
    def inputs(self) -> str:
        """See `Format`."""
        return "int13"

    @property
    def together(self) -> int:
        """See `Format`."""
        return 2

    def group(self, get: Reader) -> Value:
        """See `Format`."""
        return get("group")

    def _group_bytes(self, body: Body, group: Value) -> Value:
        return body.mul(group, 2 * LANES * self.processor.vectors)

    def join(self, body: Body, total: Value, weight: Value, given: Value) -> Value:
        """See `Format`."""
        return short_dots(body, total, weight, given)

    def _offset(self, body: Body, operands: Operands, place: Value) -> Value:
        return body.whole(0)

    def _weights(self, body: Body, operands: Operands, start: Value) -> Iterator[list[Value]]:
        return _lines(body, short_line(), operands, start, self._unroll)


_FORMATS = {"int4": Int4, "int8": Int8, "int16": Int16, "bfloat16": Exact, "float32": Exact}


def format_of(name: str, processor: Processor) -> Format:
    """A format of weights on a kind of processor. Raises KeyError for an unknown name."""
    return _FORMATS[name](name, processor)


def _lines(body: Body, kind: ir.VectorType, operands: Operands, start: Value, count: int) -> Iterator[list[Value]]:
    """The weights of some steps along the inputs, which stand one after another."""
    width = kind.count * bytes_of(kind.element)
    step_bytes = body.processor.vectors * width
    together = body.at(operands.weights, body.mul(start, step_bytes))
    if operands.asked:
        vectors = body.processor.vectors
        done = body.div(body.sub(body.builder.ptrtoint(together, I64), operands.origin), vectors)
        for pointer in operands.asked:
            for place in range(0, count * step_bytes // vectors, LINE):
                body.prefetch(pointer, body.add(done, place))
    for step in range(count):
        places = range(step * step_bytes, (step + 1) * step_bytes, width)
        if operands.ahead is not None:
            for place in places:
                if place % 64 == 0:
                    body.prefetch(together, body.add(operands.ahead, place))
        yield [body.load(kind, together, place, align=width) for place in places]


def _cells(body: Body, kind: ir.VectorType, rows: int) -> Cells:
    zero = ir.Constant(kind, [0.0 if kind is F32X else 0] * LANES)
    return [[body.cell(kind, zero) for _ in range(body.processor.vectors)] for _ in range(rows)]
