"""Attention over the paged cache, whose layout is that of `heads.py`.

A task is some query vectors of one sequence that share a key-value head, at most `HEIGHT`, and all their keys. Softmax
goes along the keys in steps of 64 tokens at fixed positions with a running maximum (Milakov and Gimelshein, 2018; Dao
et al., 2022), so that a token's result does not depend on how its prompt was cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
    I32,
    I32X,
    I64,
    LANES,
    PTR,
    Body,
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


def seen_of(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many tiles the tables of sequences need whose last tokens have these positions: attention looks at whole
    groups of tiles, and one ahead."""
    return (positions // SUPER + 2) * _TILES


def tasks_of(
    shape: Heads,
    tables: NDArray[np.int64],
    rows: NDArray[np.int64],
    positions: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The tasks of a step, int64 `[tasks, 6]`, which `Step.TILES` points at.

    For each sequence there is the first of its tiles in `Step.TABLES`, the row and the position of its first token in
    this step, and its number of tokens. A task has the first three of them, its first query vector (rows times heads of
    a group), how many it takes, and its key-value head. Those of one sequence and head follow one another, since they
    read the same keys and values.
    """
    vectors = counts * (shape.heads // shape.kv_heads)
    parts = -(-vectors // HEIGHT)
    owner = np.repeat(np.arange(len(vectors)), parts * shape.kv_heads)
    place = np.arange(len(owner)) - ((np.cumsum(parts) - parts) * shape.kv_heads)[owner]
    head, part = np.divmod(place, parts[owner])
    first = part * HEIGHT
    left = np.minimum(HEIGHT, vectors[owner] - first)
    return np.stack((tables[owner], rows[owner], positions[owner], first, left, head), axis=1)


def emit_attend(module: Module, shape: Heads, *, causal: bool = True) -> None:
    """Writes `attend`; its arguments are `layout.Attend`, its tasks those of `tasks_of`.

    Where it is not `causal`, every token attends to all up to the position that its sequence has there.
    """
    body = Body(module, "attend", [PTR, I64, PTR])
    arguments, task, step = body.arguments
    get = Attend.reader(body, arguments)
    plan = body.at(body.load(PTR, step, 8 * Step.TILES), body.mul(task, 48))
    table_at, row, position, first, count, head = (body.load(I64, plan, 8 * index) for index in range(6))
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
        scores=body.scratch(HEIGHT * SUPER * 4),
        weights=body.scratch(HEIGHT * SUPER * 4),
        sums=body.scratch(HEIGHT * shape.dim * 4),
        tops=body.scratch(64),
        shrinks=body.scratch(64),
        totals=body.scratch(HEIGHT * 64),
        now=body.scratch(8 * _TILES),
        soon=body.scratch(8 * _TILES),
        causal=causal,
    )
    for rows in range(1, HEIGHT + 1):
        with body.when(body.equal(count, rows)):
            task_parts.run(rows)
    body.end()


@dataclass(frozen=True, slots=True)
class _Attention:
    """What the code of one task refers to.

    What rows have is in memory between the products, and rows are gone through in loops: written out for each row, it
    would not fit into registers, and would push the sums of products out of theirs.
    """

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
    scores: Value
    weights: Value
    sums: Value
    tops: Value
    shrinks: Value
    totals: Value
    now: Value
    soon: Value
    causal: bool

    def run(self, rows: int) -> None:
        """Attends with `rows` query vectors."""
        body, shape = self.body, self.shape
        # Not a loop: LLVM would make a call of one that writes zeros.
        body.store(body.number(_HIDDEN), self.tops)
        for index in range(rows):
            body.store(body.number(0.0), self.totals, 64 * index)
            for start in range(0, shape.dim, LANES):
                body.store(body.number(0.0), self._sums_of(index), 4 * start)
        sources = [self._source(index) for index in range(rows)]
        lowest = body.max(body.add(body.sub(self._limit(0), self.window), 1), 0)
        highest = self._limit(rows - 1)
        with body.loop(body.div(lowest, SUPER), body.add(body.div(highest, SUPER), 1)) as step:
            for listed, number in ((self.now, step), (self.soon, body.add(step, 1))):
                for index, tile in enumerate(self._tiles(number)):
                    body.store(tile, listed, 8 * index)
            # What is hidden from all rows is not computed.
            tiles = body.min(body.add(body.div(body.sub(highest, body.mul(step, SUPER)), TILE), 1), _TILES)
            self._add_scores(rows, sources, tiles)
            self._hide(rows, step, tiles)
            self._soften(rows, tiles)
            self._add_values(rows, tiles)
        with body.loop(0, rows) as index:
            total = body.load(F32X, self.totals, body.mul(index, 64))
            factor = body.splat(body.fdiv(ir.Constant(F32, 1.0), body.sum(total)))
            target, sums = self._target(index), self._sums_of(index)
            for start in range(0, shape.dim, LANES):
                body.store(body.fmul(body.load(F32X, sums, 4 * start), factor), target, 4 * start)

    def _place(self, index: Value) -> tuple[Value, Value]:
        """The row of a query vector, counted from the sequence's first one, and its head."""
        body, group = self.body, self.shape.heads // self.shape.kv_heads
        flat = body.add(self.first, index)
        return body.div(flat, group), body.add(body.mul(self.head, group), body.rem(flat, group))

    def _limit(self, index: Value) -> Value:
        """The last position that a query vector attends to."""
        return self.body.add(self.position, self._place(index)[0]) if self.causal else self.position

    def _source(self, index: Value) -> Value:
        body, shape = self.body, self.shape
        row, head = self._place(index)
        vector = body.add(body.mul(body.add(self.row, row), shape.heads), head)
        return body.at(self.queries, body.mul(vector, shape.dim * shape.given_width))

    def _target(self, index: Value) -> Value:
        body = self.body
        row, head = self._place(index)
        return body.at(
            self.out, body.add(body.mul(body.add(self.row, row), self.stride), body.mul(head, self.shape.dim * 4))
        )

    def _sums_of(self, index: Value) -> Value:
        return self.body.at(self.sums, self.body.mul(index, self.shape.dim * 4))

    def _tiles(self, step: Value) -> list[Value]:
        """The tiles of 64 tokens. A table has those of one more step than there are tokens for, to be fetched early."""
        body = self.body
        numbers = [
            body.load(I64, self.table, body.mul(body.add(body.mul(step, _TILES), index), 8)) for index in range(_TILES)
        ]
        return [body.at(self.keys, body.mul(number, self.shape.stride)) for number in numbers]

    def _add_scores(self, rows: int, sources: list[Value], tiles: Value) -> None:
        """Writes the scores of the first `tiles` tiles, as many at once as there are registers for."""
        body, shape = self.body, self.shape
        across = body.processor.vectors
        with body.loop(0, tiles, across) as first:
            keys, following = (
                [body.load(PTR, listed, body.mul(body.add(first, tile), 8)) for tile in range(across)]
                for listed in (self.now, self.soon)
            )
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
            for row in range(rows):
                for tile, cell in enumerate(cells[row]):
                    body.store(cell.get(), self.scores, body.mul(body.add(first, row * _TILES + tile), 64))

    def _soften(self, rows: int, tiles: Value) -> None:
        """Turns the scores of the first `tiles` tiles into weights, relative to each row's largest score so far, and
        shrinks its sums by what earlier weights shrink.

        Rows wait for their largest scores side by side, and what becomes of those is computed for all rows at once.
        """
        body, shape = self.body, self.shape
        largest = [body.cell(F32X, body.number(_HIDDEN)) for _ in range(rows)]
        with body.loop(0, tiles) as tile:
            for row, cell in enumerate(largest):
                score = body.load(F32X, self.scores, body.add(body.mul(tile, 64), row * SUPER * 4))
                cell.set(body.larger(score, cell.get()))
        before = body.load(F32X, self.tops)
        for row, cell in enumerate(largest):
            body.store(body.top(cell.get()), self.tops, 4 * row)
        tops = body.larger(body.load(F32X, self.tops), before)
        body.store(tops, self.tops)
        body.store(body.exp2(body.fsub(before, tops)), self.shrinks)
        width = shape.given_width
        with body.loop(0, rows) as index:
            top, shrink = (body.splat(body.load(F32, all_, body.mul(index, 4))) for all_ in (self.tops, self.shrinks))
            place = body.mul(index, 64)
            total = body.cell(F32X, body.fmul(body.load(F32X, self.totals, place), shrink))
            scores = body.at(self.scores, body.mul(index, SUPER * 4))
            weights = body.at(self.weights, body.mul(index, SUPER * width))
            with body.loop(0, tiles) as tile:
                weight = body.exp2(body.fsub(body.load(F32X, scores, body.mul(tile, 64)), top))
                total.set(body.fadd(total.get(), weight))
                kept = to_bfloat(body, weight) if width == 2 else weight
                body.store(kept, weights, body.mul(tile, TILE * width))
            body.store(total.get(), self.totals, place)
            sums = self._sums_of(index)
            for start in range(0, shape.dim, LANES):
                body.store(body.fmul(body.load(F32X, sums, 4 * start), shrink), sums, 4 * start)

    def _hide(self, rows: int, step: Value, tiles: Value) -> None:
        """Hides the scores of tokens that come later or lie before the window, in a step that has some."""
        body, builder = self.body, self.body.builder
        start = body.mul(step, SUPER)
        earlier = body.less(start, body.add(body.sub(self._limit(rows - 1), self.window), 1))
        # Tiles before this one have nothing that comes later.
        mixed = body.div(body.max(body.sub(body.add(self._limit(0), 1), start), 0), TILE)
        with body.loop(builder.select(earlier, body.int(0), mixed), tiles) as tile:
            first = body.splat(builder.trunc(body.add(start, body.mul(tile, TILE)), I32))
            places = builder.add(first, body.lanes())
            scores = body.at(self.scores, body.mul(tile, 64))
            for index in range(rows):
                limit = self._limit(index)
                last = body.splat(builder.trunc(limit, I32))
                beyond = body.splat(builder.trunc(body.sub(limit, self.window), I32))
                visible = builder.and_(
                    builder.icmp_signed("<=", places, last), builder.icmp_signed(">", places, beyond)
                )
                score = body.load(F32X, scores, index * SUPER * 4)
                body.store(builder.select(visible, score, body.number(_HIDDEN)), scores, index * SUPER * 4)

    def _add_values(self, rows: int, tiles: Value) -> None:
        """Adds the weighted values of the first `tiles` tiles, as many dimensions at a time as there are registers
        for."""
        body, shape = self.body, self.shape
        wide = min(shape.dim, body.processor.vectors * LANES)
        steps = TILE // shape.pair
        for part in range(0, shape.dim, wide):
            places = [[4 * (row * shape.dim + part + lane) for lane in range(0, wide, LANES)] for row in range(rows)]
            cells = [
                [body.cell(F32X, body.load(F32X, self.sums, place)) for place in row_places] for row_places in places
            ]
            with body.loop(0, tiles) as number:
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
