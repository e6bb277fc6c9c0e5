"""Attention over the paged cache, whose layout is that of `heads.py`.

A task is some query vectors of one sequence that share a key-value head, at most `HEIGHT`, and all their keys. Softmax
goes along the keys in steps of 64 tokens at fixed positions with a running maximum (Milakov and Gimelshein, 2018; Dao
et al., 2022), so that a token's result does not depend on how its prompt was cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
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
from argosy_services.engine.torch_engine.native.heads import Heads
from argosy_services.engine.torch_engine.native.instructions import first_of, pairs, second_of, to_bfloat
from argosy_services.engine.torch_engine.native.layout import SUPER, TILE, Attend, Step

HEIGHT = 6
_TILES = SUPER // TILE
# Vectors of keys or values that stand one after another in a loop.
_UNROLL = 4
# Smaller than any score, and still a number: infinities would make NaN where a whole step is hidden.
_HIDDEN = -1e30


def emit_attend(module: Module, shape: Heads) -> None:
    """Writes `attend`; its arguments are `layout.Attend`.

    A step's `TILES` are int64 groups of five: the first of a sequence's tiles in `TABLES`, the row and the position of
    its first token in this step, the first query vector (rows times heads of a group) and how many there are.
    """
    body = Body(module, "attend", [PTR, I64, PTR])
    arguments, task, step = body.arguments
    get = Attend.reader(body, arguments)
    head = body.rem(task, shape.kv_heads)
    plan = body.at(body.load(PTR, step, 8 * Step.TILES), body.mul(body.div(task, shape.kv_heads), 40))
    table_at, row, position, first, count = (body.load(I64, plan, 8 * index) for index in range(5))
    table = body.at(body.load(PTR, step, 8 * Step.TABLES), body.mul(table_at, 8))
    place = body.mul(head, shape.unit_bytes)
    task_parts = _Attention(
        body=body,
        shape=shape,
        table=table,
        keys=body.at(get.pointer("cache"), place),
        queries=get.pointer("queries"),
        out=get.pointer("out"),
        stride=get("stride"),
        window=get("window"),
        head=head,
        row=row,
        position=position,
        first=first,
        weights=body.scratch(HEIGHT * SUPER * 4),
        sums=body.scratch(HEIGHT * shape.dim * 4),
        now=body.scratch(8 * _TILES),
        soon=body.scratch(8 * _TILES),
    )
    for rows in range(1, HEIGHT + 1):
        with body.when(body.equal(count, rows)):
            task_parts.run(rows)
    body.end()


@dataclass(frozen=True, slots=True)
class _Attention:
    """What the code of one task refers to."""

    body: Body
    shape: Heads
    table: Value
    keys: Value
    queries: Value
    out: Value
    stride: Value
    window: Value
    head: Value
    row: Value
    position: Value
    first: Value
    weights: Value
    sums: Value
    now: Value
    soon: Value

    def run(self, rows: int) -> None:
        """Attends with `rows` query vectors."""
        body, shape = self.body, self.shape
        group = shape.heads // shape.kv_heads
        dim = shape.dim
        limits, sources, targets = [], [], []
        for index in range(rows):
            flat = body.add(self.first, index)
            offset = body.div(flat, group)
            row = body.add(self.row, offset)
            head = body.add(body.mul(self.head, group), body.rem(flat, group))
            limits.append(body.add(self.position, offset))
            vector = body.add(body.mul(row, shape.heads), head)
            sources.append(body.at(self.queries, body.mul(vector, dim * shape.given_width)))
            targets.append(body.at(self.out, body.add(body.mul(row, self.stride), body.mul(head, dim * 4))))
        lowest = body.max(body.add(body.sub(limits[0], self.window), 1), 0)
        tops = [body.cell(F32X, body.number(_HIDDEN)) for _ in range(rows)]
        totals = [body.cell(F32X, body.number(0.0)) for _ in range(rows)]
        for index in range(rows):
            for start in range(0, dim, LANES):
                body.store(body.number(0.0), self.sums, 4 * (index * dim + start))
        with body.loop(body.div(lowest, SUPER), body.add(body.div(limits[-1], SUPER), 1)) as step:
            tiles, following = self._tiles(step), self._tiles(body.add(step, 1))
            for index, (tile, next_tile) in enumerate(zip(tiles, following, strict=True)):
                body.store(tile, self.now, 8 * index)
                body.store(next_tile, self.soon, 8 * index)
            scores = self._scores(rows, sources, tiles, following)
            for index in range(rows):
                hidden = self._hide(scores[index], limits[index], step)
                self._shrink(index, self._soften(index, hidden, tops[index], totals[index]))
            self._add_values(rows)
        for index in range(rows):
            factor = body.splat(body.fdiv(ir.Constant(F32, 1.0), body.sum(totals[index].get())))
            for start in range(0, dim, LANES):
                value = body.load(F32X, self.sums, 4 * (index * dim + start))
                body.store(body.fmul(value, factor), targets[index], 4 * start)

    def _tiles(self, step: Value) -> list[Value]:
        """The tiles of 64 tokens. A table has those of one more step than there are tokens for, to be fetched early."""
        body = self.body
        numbers = [
            body.load(I64, self.table, body.mul(body.add(body.mul(step, _TILES), index), 8)) for index in range(_TILES)
        ]
        return [body.at(self.keys, body.mul(number, self.shape.stride)) for number in numbers]

    def _scores(self, rows: int, sources: list[Value], keys: list[Value], following: list[Value]) -> list[list[Value]]:
        """Of each row, one vector for each tile. As many tiles at once as there are registers for."""
        across = self.body.processor.vectors
        parts = [
            self._scores_of(rows, sources, keys[first : first + across], following[first : first + across])
            for first in range(0, len(keys), across)
        ]
        return [[score for part in parts for score in part[row]] for row in range(rows)]

    def _scores_of(
        self, rows: int, sources: list[Value], keys: list[Value], following: list[Value]
    ) -> list[list[Value]]:
        body, shape = self.body, self.shape
        cells = [[body.cell(F32X, body.number(0.0)) for _ in keys] for _ in range(rows)]
        with body.loop(0, shape.dim // shape.pair, _UNROLL) as start:
            totals = [[cell.get() for cell in row] for row in cells]
            for more in range(_UNROLL):
                index = body.add(start, more)
                lines = [self._line(key, body.mul(index, 64)) for key in keys]
                # Whole tasks are those of prompts, which find in the cache what their neighbours have just read.
                for key in following if rows < HEIGHT else ():
                    body.prefetch(key, body.mul(index, 64))
                for row in range(rows):
                    totals[row] = self._join_all(totals[row], lines, sources[row], index)
            for row in range(rows):
                for cell, total in zip(cells[row], totals[row], strict=True):
                    cell.set(total)
        return [[cell.get() for cell in row] for row in cells]

    def _hide(self, scores: list[Value], limit: Value, step: Value) -> list[Value]:
        """Scores without those of tokens that come later, or lie before the window."""
        body, builder = self.body, self.body.builder
        last = body.splat(builder.trunc(limit, I32))
        beyond = body.splat(builder.trunc(body.sub(limit, self.window), I32))
        start = body.splat(builder.trunc(body.mul(step, SUPER), I32))
        seen = []
        for tile, score in enumerate(scores):
            places = builder.add(builder.add(start, body.lanes()), body.whole(tile * TILE))
            visible = builder.and_(builder.icmp_signed("<=", places, last), builder.icmp_signed(">", places, beyond))
            seen.append(builder.select(visible, score, body.number(_HIDDEN)))
        return seen

    def _soften(self, index: int, seen: list[Value], top: Cell, total: Cell) -> Value:
        """Turns scores into weights, relative to the largest score so far; returns what earlier ones shrink by."""
        body = self.body
        largest = seen[0]
        for score in seen[1:]:
            largest = body.larger(score, largest)
        before = top.get()
        now = body.larger(body.splat(body.top(largest)), before)
        shrink = body.exp2(body.fsub(before, now))
        running = body.fmul(total.get(), shrink)
        for tile, score in enumerate(seen):
            weight = body.exp2(body.fsub(score, now))
            running = body.fadd(running, weight)
            width = self.shape.given_width
            narrow = to_bfloat(body, weight) if width == 2 else weight
            body.store(narrow, self.weights, (index * SUPER + tile * TILE) * width)
        top.set(now)
        total.set(running)
        return shrink

    def _shrink(self, index: int, factor: Value) -> None:
        body, dim = self.body, self.shape.dim
        for start in range(0, dim, LANES):
            place = 4 * (index * dim + start)
            body.store(body.fmul(body.load(F32X, self.sums, place), factor), self.sums, place)

    def _add_values(self, rows: int) -> None:
        """Adds the weighted values, as many dimensions at a time as there are registers for."""
        body, shape = self.body, self.shape
        wide = min(shape.dim, body.processor.vectors * LANES)
        steps = TILE // shape.pair
        for part in range(0, shape.dim, wide):
            places = [[4 * (row * shape.dim + part + lane) for lane in range(0, wide, LANES)] for row in range(rows)]
            cells = [
                [body.cell(F32X, body.load(F32X, self.sums, place)) for place in row_places] for row_places in places
            ]
            with body.loop(0, _TILES) as number:
                tile, next_tile = (body.load(PTR, listed, body.mul(number, 8)) for listed in (self.now, self.soon))
                values, next_values = (body.at(start, shape.tile_bytes) for start in (tile, next_tile))
                weights = body.at(self.weights, body.mul(number, TILE * shape.given_width))
                with body.loop(0, steps, _UNROLL) as start:
                    totals = [[cell.get() for cell in row] for row in cells]
                    for more in range(_UNROLL):
                        index = body.add(start, more)
                        at = body.add(body.mul(index, shape.dim * 4), 4 * part)
                        lines = [self._line(values, body.add(at, 4 * lane)) for lane in range(0, wide, LANES)]
                        for lane in range(0, wide, LANES) if rows < HEIGHT else ():
                            body.prefetch(next_values, body.add(at, 4 * lane))
                        for row in range(rows):
                            of_row = body.at(weights, row * SUPER * shape.given_width)
                            totals[row] = self._join_all(totals[row], lines, of_row, index)
                    for row in range(rows):
                        for cell, total in zip(cells[row], totals[row], strict=True):
                            cell.set(total)
            for row in range(rows):
                for place, cell in zip(places[row], cells[row], strict=True):
                    body.store(cell.get(), self.sums, place)

    def _line(self, pointer: Value, offset: Value) -> Value:
        return self.body.load(I32X if self.shape.width == 2 else F32X, pointer, offset, align=64)

    def _join_all(self, totals: list[Value], lines: list[Value], given: Value, index: Value) -> list[Value]:
        """`totals` plus lines of keys or values, each times the number, or pair of them, at an index of `given`."""
        body, shape = self.body, self.shape
        if shape.given_width == 2:
            pair = body.load(I32, given, body.mul(index, 4))
            return [pairs(body, total, line, pair) for total, line in zip(totals, lines, strict=True)]
        here = body.at(given, body.mul(index, 4 * shape.pair))
        factors = [body.splat(body.load(F32, here, 4 * part)) for part in range(shape.pair)]
        return [self._join(total, line, factors) for total, line in zip(totals, lines, strict=True)]

    def _join(self, total: Value, line: Value, factors: list[Value]) -> Value:
        """`total` plus a line times a factor, or the numbers of a line of pairs times one each."""
        body = self.body
        numbers = [line] if len(factors) == 1 else [first_of(body, line), second_of(body, line)]
        for number, factor in zip(numbers, factors, strict=True):
            total = body.fma(number, factor, total)
        return total
