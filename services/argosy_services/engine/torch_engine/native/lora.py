"""The products of a step's adapters: each row's own two small factors, added to what the base computed.

One kernel serves all rows of a step whatever adapters they have (idea: Punica, Chen et al., 2023; S-LoRA, Sheng et al.,
2023). A task is up to six rows of one adapter and one of the modules that share an input.
"""

from __future__ import annotations

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
    HALVES,
    I32,
    I64,
    LANES,
    PTR,
    Body,
    Value,
)
from argosy_services.engine.torch_engine.native.layout import MODULES, Adapt, AdapterField, Step

HEIGHT = 6
MAX_RANK = 512
# Independent sums of one output, because a product takes several cycles.
_SUMS = 4


def emit_adapt(module: ir.Module, form: str) -> None:
    """Writes `adapt`; its arguments are `layout.Adapt`. `form` is the type of inputs and factors."""
    body = Body(module, "adapt", [PTR, I64, PTR])
    arguments, task, step = body.arguments
    get = Adapt.reader(body, arguments)
    count = get("modules")
    plan = body.at(body.load(PTR, step, 8 * Step.ADAPTED), body.mul(body.div(task, count), 24))
    row, rows, slot = (body.load(I64, plan, 8 * index) for index in range(3))
    chosen = body.at(arguments, body.mul(body.rem(task, count), 24))
    first_module = 8 * (len(Adapt.names) - 3 * MODULES)
    index, columns, offset = (body.load(I64, chosen, first_module + 8 * part) for part in range(3))
    number = body.add(body.mul(slot, get("table_modules")), index)
    entry = body.at(get.pointer("table"), body.mul(number, 8 * len(AdapterField)))
    down, up = (body.load(PTR, entry, 8 * field) for field in (AdapterField.DOWN, AdapterField.UP))
    rank = body.load(I64, entry, 8 * AdapterField.RANK)
    code = _Adapt(
        body,
        width=2 if form == "bfloat16" else 4,
        size=get("size"),
        rank=rank,
        inputs=body.at(get.pointer("inputs"), body.mul(row, get("row_bytes"))),
        row_bytes=get("row_bytes"),
        out=body.at(get.pointer("out"), body.add(body.mul(row, get("stride")), body.mul(offset, 4))),
        stride=get("stride"),
    )
    # Modules that an adapter leaves alone have the rank 0.
    with body.when(body.less(0, rank)):
        for height in range(1, HEIGHT + 1):
            with body.when(body.equal(rows, height)):
                code.shrink(height, down)
                code.expand(height, up, columns)
    body.end()


class _Adapt:
    """The two halves of the kernel for one number of rows."""

    def __init__(
        self,
        body: Body,
        *,
        width: int,
        size: Value,
        rank: Value,
        inputs: Value,
        row_bytes: Value,
        out: Value,
        stride: Value,
    ) -> None:
        self._body = body
        self._width = width
        self._pair = 4 // width
        self._size, self._rank = size, rank
        self._inputs, self._row_bytes = inputs, row_bytes
        self._out, self._stride = out, stride
        self._small = body.scratch(HEIGHT * MAX_RANK * width)

    def shrink(self, rows: int, down: Value) -> None:
        """Rows times the first factor, packed `[rank / 16][inputs]`, into `[rows][rank]`."""
        body = self._body
        steps = body.div(self._size, self._pair)
        with body.loop(0, body.div(self._rank, LANES)) as chunk:
            stream = body.at(down, body.mul(body.mul(chunk, steps), 64))
            sums = [[body.cell(F32X, body.number(0.0)) for _ in range(_SUMS)] for _ in range(rows)]
            with body.loop(0, steps, _SUMS) as start:
                for part in range(_SUMS):
                    at = body.add(start, part)
                    weight = self._line(stream, body.mul(at, 64))
                    for row in range(rows):
                        given = body.load(I32, self._inputs, body.add(body.mul(self._row_bytes, row), body.mul(at, 4)))
                        cell = sums[row][part]
                        cell.set(self._join(cell.get(), weight, given))
            for row in range(rows):
                total = body.fadd(
                    body.fadd(sums[row][0].get(), sums[row][1].get()), body.fadd(sums[row][2].get(), sums[row][3].get())
                )
                narrow = body.to_bfloat(total) if self._width == 2 else total
                place = body.add(body.mul(chunk, LANES * self._width), row * MAX_RANK * self._width)
                body.store(narrow, self._small, place)

    def expand(self, rows: int, up: Value, columns: Value) -> None:
        """Adds `[rows][rank]` times the second factor, packed `[outputs / 16][rank]`, to the output."""
        body = self._body
        steps = body.div(self._rank, self._pair)
        with body.loop(0, body.div(columns, LANES)) as chunk:
            stream = body.at(up, body.mul(body.mul(chunk, steps), 64))
            places = [body.add(body.mul(self._stride, row), body.mul(chunk, 64)) for row in range(rows)]
            sums = [body.cell(F32X, body.load(F32X, self._out, place)) for place in places]
            with body.loop(0, steps, 4) as start:
                for part in range(4):
                    at = body.add(start, part)
                    weight = self._line(stream, body.mul(at, 64))
                    for row, cell in enumerate(sums):
                        place = body.add(body.mul(at, 4), row * MAX_RANK * self._width)
                        cell.set(self._join(cell.get(), weight, body.load(I32, self._small, place)))
            for place, cell in zip(places, sums, strict=True):
                body.store(cell.get(), self._out, place)

    def _line(self, pointer: Value, offset: Value) -> Value:
        return self._body.load(HALVES if self._width == 2 else F32X, pointer, offset, align=64)

    def _join(self, total: Value, line: Value, given: Value) -> Value:
        body = self._body
        if self._width == 2:
            return body.pairs(total, line, given)
        return body.fma(line, body.splat(body.builder.bitcast(given, F32)), total)
