"""The products of a step's adapters: each row's own two small factors, added to what the base computed.

One kernel serves all rows of a step whatever adapters they have (idea: Punica, Chen et al., 2023; S-LoRA, Sheng et al.,
2023). A task is up to six rows of one adapter and one of the modules that share an input.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
    I8X,
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
)
from argosy_services.engine.torch_engine.native.instructions import byte_line, dots, pairs, to_bfloat
from argosy_services.engine.torch_engine.native.layout import (
    GROUP,
    MODULES,
    Adapt,
    AdapterField,
    adapter_entry,
    adapter_task,
)
from argosy_services.engine.torch_engine.native.panels import LINE, PANEL, along, row_at
from argosy_services.engine.torch_engine.native.rows import largest_of, quantizing

HEIGHT = PANEL
MAX_RANK = 512
POINTERS = (AdapterField.DOWN, AdapterField.UP, AdapterField.DOWN_SCALES, AdapterField.UP_SCALES)
# Steps that stand one after another in a loop.
_UNROLL = 4


def emit_adapt(module: Module, form: str) -> None:
    """Writes `adapt`; its arguments are `layout.Adapt`. `form` is that of the inputs."""
    body = Body(module, "adapt", [PTR, I64, PTR])
    arguments, task, step = body.arguments
    get = Adapt.reader(body, arguments)
    count = get("modules")
    row, rows, slot = adapter_task(body, step, body.div(task, count))
    chosen = body.at(arguments, body.mul(body.rem(task, count), 24))
    first_module = 8 * (len(Adapt.names) - 3 * MODULES)
    index, columns, offset = (body.load(I64, chosen, first_module + 8 * part) for part in range(3))
    entry = adapter_entry(body, get, slot, index)
    rank = body.load(I64, entry, 8 * AdapterField.RANK)
    down, up, down_scales, up_scales = (body.load(PTR, entry, 8 * field) for field in POINTERS)
    factors = _Factors(down, up, down_scales, up_scales, rank)
    rows_at = _Rows(
        inputs=[row_at(body, get.pointer("inputs"), body.add(row, more), get("row_bytes")) for more in range(HEIGHT)],
        size=get("size"),
        scales=get.pointer("scales"),
        offsets=get.pointer("offsets"),
        first=row,
        out=body.at(get.pointer("out"), body.add(body.mul(row, get("stride")), body.mul(offset, 4))),
        stride=get("stride"),
    )
    quantized = form in ("int8", "int16")
    code = _Int8(body, rows_at, factors) if quantized else _Exact(body, rows_at, factors, form)
    # Modules that an adapter leaves alone have the rank 0.
    with body.when(body.less(0, rank)):
        for height in range(1, HEIGHT + 1):
            with body.when(body.equal(rows, height)):
                code.shrink(height)
                code.expand(height, columns)
    body.end()


@dataclass(frozen=True, slots=True)
class _Factors:
    """The factors of one module: `down` packed `[rank / 16][inputs]`, `up` packed `[outputs / 16][rank]`."""

    down: Value
    up: Value
    down_scales: Value
    up_scales: Value
    rank: Value


@dataclass(frozen=True, slots=True)
class _Rows:
    """A task's rows: where each one's inputs begin and where the change goes."""

    inputs: list[Value]
    size: Value
    scales: Value
    offsets: Value
    first: Value
    out: Value
    stride: Value


class _Exact:
    """float32, or bfloat16 with float32 sums."""

    def __init__(self, body: Body, rows: _Rows, factors: _Factors, form: str) -> None:
        self._body, self._rows, self._factors = body, rows, factors
        self._width = 2 if form == "bfloat16" else 4
        self._pair = 4 // self._width
        self._small = body.scratch(HEIGHT * MAX_RANK * self._width)
        # Independent sums of one output, because a product takes several cycles; as many as there are registers for.
        self._sums = body.processor.vectors

    def shrink(self, rows: int) -> None:
        """Rows times the first factor, into a panel of `[rows][rank]`."""
        body, given = self._body, self._rows
        steps = body.div(given.size, self._pair)
        with body.loop(0, body.div(self._factors.rank, LANES)) as chunk:
            stream = body.at(self._factors.down, body.mul(body.mul(chunk, steps), 64))
            sums = [[body.cell(F32X, body.number(0.0)) for _ in range(self._sums)] for _ in range(rows)]
            with body.loop(0, steps, _UNROLL) as start:
                at = along(body, body.mul(start, 4))
                for part in range(_UNROLL):
                    weight = self._line(stream, body.mul(body.add(start, part), 64))
                    for row in range(rows):
                        some = body.load(I32, given.inputs[row], body.add(at, 4 * part))
                        cell = sums[row][part % self._sums]
                        cell.set(self._join(cell.get(), weight, some))
            place = along(body, body.mul(chunk, LANES * self._width))
            for row in range(rows):
                total = _fold(body, [cell.get() for cell in sums[row]])
                narrow = to_bfloat(body, total) if self._width == 2 else total
                body.store(narrow, self._small, body.add(place, row * LINE))

    def expand(self, rows: int, columns: Value) -> None:
        """Adds `[rows][rank]` times the second factor to the output."""
        body, given = self._body, self._rows
        steps = body.div(self._factors.rank, self._pair)
        with body.loop(0, body.div(columns, LANES)) as chunk:
            stream = body.at(self._factors.up, body.mul(body.mul(chunk, steps), 64))
            places = [body.add(body.mul(given.stride, row), body.mul(chunk, 64)) for row in range(rows)]
            sums = [body.cell(F32X, body.load(F32X, given.out, place)) for place in places]
            with body.loop(0, steps, _UNROLL) as start:
                at = along(body, body.mul(start, 4))
                for part in range(_UNROLL):
                    weight = self._line(stream, body.mul(body.add(start, part), 64))
                    for row, cell in enumerate(sums):
                        some = body.load(I32, self._small, body.add(at, row * LINE + 4 * part))
                        cell.set(self._join(cell.get(), weight, some))
            for place, cell in zip(places, sums, strict=True):
                body.store(cell.get(), given.out, place)

    def _line(self, pointer: Value, offset: Value) -> Value:
        return self._body.load(I32X if self._width == 2 else F32X, pointer, offset, align=64)

    def _join(self, total: Value, line: Value, given: Value) -> Value:
        body = self._body
        if self._width == 2:
            return pairs(body, total, line, given)
        return body.fma(line, body.splat(body.builder.bitcast(given, F32)), total)


def _fold(body: Body, values: list[Value]) -> Value:
    """The sum of some vectors, always in the same order."""
    while len(values) > 1:
        values = [body.fadd(*values[at : at + 2]) for at in range(0, len(values), 2)]
    return values[0]


class _Int8:
    """Bytes: factors with a scale per output. Inputs are those of the base; what lies between the factors is quantized
    by rows."""

    def __init__(self, body: Body, rows: _Rows, factors: _Factors) -> None:
        self._body, self._rows, self._factors = body, rows, factors
        self._small = body.scratch(HEIGHT * MAX_RANK * 4)
        # Inputs of the second factor have the type of the first one's.
        self._together = body.processor.together
        self._kind = I8X if self._together == 4 else I16X
        self._wholes = body.scratch(HEIGHT * MAX_RANK * 4 // self._together)
        self._scales = body.scratch(HEIGHT * 4)
        self._offsets = body.scratch(HEIGHT * 4)

    def shrink(self, rows: int) -> None:
        """Rows times the first factor, quantized into a panel of `[rows][rank]`."""
        body, given = self._body, self._rows
        groups = body.div(given.size, GROUP)
        with body.loop(0, body.div(self._factors.rank, LANES)) as chunk:
            stream = body.at(self._factors.down, body.mul(chunk, body.mul(given.size, LANES)))
            sums = [body.cell(F32X, body.number(0.0)) for _ in range(rows)]
            with body.loop(0, groups) as group:
                places = [
                    body.mul(body.add(body.mul(body.add(given.first, row), groups), group), 4) for row in range(rows)
                ]
                parts = [body.cell(I32X, body.splat(body.load(I32, given.offsets, place))) for place in places]
                line = body.at(stream, body.mul(group, GROUP * LANES))
                steps = GROUP // self._together
                offset = along(body, body.mul(group, steps * 4))
                self._multiply(parts, line, steps, [body.at(row, offset) for row in given.inputs[:rows]])
                for cell, part, place in zip(sums, parts, places, strict=True):
                    scale = body.splat(body.load(F32, given.scales, place))
                    cell.set(body.fma(body.to_float(part.get()), scale, cell.get()))
            scales = body.load(F32X, self._factors.down_scales, body.mul(chunk, 64))
            for row, cell in enumerate(sums):
                body.store(
                    body.fmul(cell.get(), scales), self._small, body.add(body.mul(chunk, 64), row * MAX_RANK * 4)
                )
        for row in range(rows):
            self._quantize(row)

    def expand(self, rows: int, columns: Value) -> None:
        """Adds `[rows][rank]` times the second factor to the output."""
        body, given = self._body, self._rows
        rank = self._factors.rank
        steps = body.div(rank, self._together)
        with body.loop(0, body.div(columns, LANES)) as chunk:
            stream = body.at(self._factors.up, body.mul(chunk, body.mul(rank, LANES)))
            parts = [body.cell(I32X, body.splat(body.load(I32, self._offsets, 4 * row))) for row in range(rows)]
            self._multiply(parts, stream, steps, [body.at(self._wholes, row * LINE) for row in range(rows)])
            scales = body.load(F32X, self._factors.up_scales, body.mul(chunk, 64))
            for row, part in enumerate(parts):
                place = body.add(body.mul(given.stride, row), body.mul(chunk, 64))
                scale = body.fmul(scales, body.splat(body.load(F32, self._scales, 4 * row)))
                body.store(
                    body.fma(body.to_float(part.get()), scale, body.load(F32X, given.out, place)), given.out, place
                )

    def _multiply(self, parts: list[Cell], stream: Value, steps: Value, inputs: list[Value]) -> None:
        body, width = self._body, self._together * LANES
        with body.loop(0, steps, _UNROLL) as start:
            at = along(body, body.mul(start, 4))
            for more in range(_UNROLL):
                weight = body.load(byte_line(body), stream, body.mul(body.add(start, more), width), align=width)
                for row, cell in zip(inputs, parts, strict=True):
                    cell.set(dots(body, cell.get(), weight, body.load(I32, row, body.add(at, 4 * more))))

    def _quantize(self, row: int) -> None:
        body, builder = self._body, self._body.builder
        values = body.at(self._small, row * MAX_RANK * 4)
        largest = body.cell(F32X, body.number(0.0))
        with body.loop(0, self._factors.rank, LANES) as index:
            value = body.absolute(body.load(F32X, values, body.mul(index, 4)))
            largest.set(body.larger(value, largest.get()))
        scale, inverse = quantizing(body, body.top(largest.get()), largest_of(self._kind))
        factor, total = body.splat(inverse), body.cell(I32X, body.whole(0))
        with body.loop(0, self._factors.rank, LANES) as index:
            whole = body.to_int(body.nearest(body.fmul(body.load(F32X, values, body.mul(index, 4)), factor)))
            place = along(body, body.mul(index, 4 // self._together))
            body.store(builder.trunc(whole, self._kind), self._wholes, body.add(place, row * LINE))
            total.set(builder.add(total.get(), whole))
        body.store(scale, self._scales, 4 * row)
        body.store(builder.mul(body.total(total.get()), ir.Constant(I32, -128)), self._offsets, 4 * row)
