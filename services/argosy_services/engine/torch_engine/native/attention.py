"""Attention over the paged cache, and what goes before it: rotary positions and writing keys and values.

The cache is a row of tiles of 16 tokens. A tile holds, for each layer and key-value head, the keys so that one vector
has one dimension (or a pair of them) of all 16 tokens, then the values so that one vector has 16 dimensions of a token
(or of a pair): scores and sums are then plain vector products, without gathering and without sums across lanes.

A task is some query vectors of one sequence that share a key-value head, at most `HEIGHT`, and all their keys. Softmax
goes along the keys in steps of 64 tokens at fixed positions with a running maximum (Milakov and Gimelshein, 2018; Dao
et al., 2022), so that a token's result does not depend on how its prompt was cut into steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from argosy_services.engine.torch_engine.config import DecoderConfig
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
from argosy_services.engine.torch_engine.native.layout import SUPER, TILE, Attend, Rotate, Step
from argosy_services.engine.torch_engine.native.processor import Processor
from argosy_services.engine.torch_engine.native.rows import each_row

HEIGHT = 6
_TILES = SUPER // TILE
# Vectors of keys or values that stand one after another in a loop.
_UNROLL = 4
# Smaller than any score, and still a number: infinities would make NaN where a whole step is hidden.
_HIDDEN = -1e30
_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of attention. `form` is the type of the cache: float32 or bfloat16, `given` that of what its keys and
    values are multiplied by: the same where there are dot products of it, and float32 elsewhere.
    """

    form: str
    given: str
    layers: int
    heads: int
    kv_heads: int
    dim: int
    scale: float
    epsilon: float

    @classmethod
    def of(cls, config: DecoderConfig, form: str, processor: Processor) -> Heads:
        """The shape that a decoder has."""
        return cls(
            form=form,
            given=form if processor.bfloat16 else "float32",
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            dim=config.head_dim,
            scale=config.head_dim**-0.5,
            epsilon=config.norm_eps,
        )

    @property
    def width(self) -> int:
        """Bytes of one number of the cache."""
        return 2 if self.form == "bfloat16" else 4

    @property
    def given_width(self) -> int:
        """Bytes of one number that keys and values are multiplied by."""
        return 2 if self.given == "bfloat16" else 4

    @property
    def tile_bytes(self) -> int:
        """Bytes of the keys, or values, of one tile and head."""
        return TILE * self.dim * self.width

    @property
    def unit_bytes(self) -> int:
        """Bytes of one tile and head: keys, then values."""
        return 2 * self.tile_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of one tile in one layer."""
        return self.kv_heads * self.unit_bytes

    @property
    def stride(self) -> int:
        """Bytes from a tile to the next one: all layers of a tile lie together."""
        return self.layers * self.layer_bytes

    @property
    def pair(self) -> int:
        """Numbers that one lane multiplies at once."""
        return 4 // self.width


def emit_rotate(module: Module, shape: Heads, *, normed: bool) -> None:
    """Writes `rotate`: one row of query, key and value to scaled queries and the cache; arguments `layout.Rotate`.

    Positions turn the halves of a head against each other (Su et al., 2021); with `normed` each head goes through
    RMSNorm first.
    """
    body = each_row(module, "rotate")
    arguments, row, step = body.arguments
    get = Rotate.reader(body, arguments)
    position = body.load(I64, body.load(PTR, step, 8 * Step.POSITIONS), body.mul(row, 8))
    slot = body.load(I64, body.load(PTR, step, 8 * Step.SLOTS), body.mul(row, 8))
    half = shape.dim // 2
    angles = body.mul(position, half * 4)
    cosines = body.at(get.pointer("cosines"), angles)
    sines = body.at(get.pointer("sines"), angles)
    inputs = body.at(get.pointer("inputs"), body.mul(row, get("stride")))
    query_bytes = shape.dim * shape.given_width
    queries = body.at(get.pointer("queries"), body.mul(row, shape.heads * query_bytes))
    lane = body.rem(slot, TILE)
    keys = body.at(get.pointer("cache"), body.mul(body.div(slot, TILE), shape.stride))
    values = body.at(keys, shape.tile_bytes)
    turned = body.scratch(shape.dim * 4)

    def turn(source: Value, norm: Value | None, factor: float, width: int) -> None:
        """Rotates a head into `turned`, in numbers of so many bytes."""
        scale = None if norm is None else _norm_factor(body, source, shape)
        for start in range(0, half, LANES):
            low, high = (body.load(F32X, source, 4 * (start + part)) for part in (0, half))
            if norm is not None and scale is not None:
                low, high = (
                    body.fmul(body.fmul(value, scale), body.load(F32X, norm, 4 * (start + part)))
                    for value, part in ((low, 0), (high, half))
                )
            cosine, sine = (body.load(F32X, table, 4 * start) for table in (cosines, sines))
            first = body.fsub(body.fmul(low, cosine), body.fmul(high, sine))
            second = body.fadd(body.fmul(high, cosine), body.fmul(low, sine))
            for value, part in ((first, 0), (second, half)):
                scaled = body.fmul(value, body.number(factor)) if factor != 1.0 else value
                narrow = body.to_bfloat(scaled) if width == 2 else scaled
                body.store(narrow, turned, width * (start + part))

    query_norm = get.pointer("query_norm") if normed else None
    key_norm = get.pointer("key_norm") if normed else None
    head_bytes = shape.dim * 4
    with body.loop(0, shape.heads) as head:
        turn(body.at(inputs, body.mul(head, head_bytes)), query_norm, shape.scale * _LOG2_E, shape.given_width)
        out = body.at(queries, body.mul(head, query_bytes))
        with body.loop(0, query_bytes // 64) as index:
            line = body.load(I32X, turned, body.mul(index, 64))
            body.store(line, out, body.mul(index, 64))
    with body.loop(0, shape.kv_heads) as head:
        place = body.mul(head, shape.unit_bytes)
        turn(body.at(inputs, body.mul(body.add(head, shape.heads), head_bytes)), key_norm, 1.0, shape.width)
        column = body.at(keys, body.add(place, body.mul(lane, 4)))
        with body.loop(0, shape.dim // shape.pair) as index:
            body.store(body.load(I32, turned, body.mul(index, 4)), column, body.mul(index, 64))
        source = body.at(inputs, body.mul(body.add(head, shape.heads + shape.kv_heads), head_bytes))
        line = body.at(values, body.add(place, body.mul(body.div(lane, shape.pair), shape.dim * 4)))
        if shape.pair == 1:
            with body.loop(0, shape.dim, LANES) as index:
                body.store(body.load(F32X, source, body.mul(index, 4)), line, body.mul(index, 4))
        else:
            line = body.at(line, body.mul(body.rem(lane, 2), 2))
            with body.loop(0, shape.dim, LANES) as index:
                narrow = body.to_bfloat(body.load(F32X, source, body.mul(index, 4)))
                for number in range(LANES):
                    value = body.builder.extract_element(narrow, ir.Constant(I32, number))
                    body.store(value, line, body.mul(body.add(index, number), 4))
    body.end()


def _norm_factor(body: Body, source: Value, shape: Heads) -> Value:
    squares = body.number(0.0)
    for start in range(0, shape.dim, LANES):
        value = body.load(F32X, source, 4 * start)
        squares = body.fma(value, value, squares)
    mean = body.fdiv(body.sum(squares), ir.Constant(F32, float(shape.dim)))
    return body.splat(body.fdiv(ir.Constant(F32, 1.0), body.root(body.fadd(mean, ir.Constant(F32, shape.epsilon)))))


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
            narrow = body.to_bfloat(weight) if width == 2 else weight
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
            return [body.pairs(total, line, pair) for total, line in zip(totals, lines, strict=True)]
        here = body.at(given, body.mul(index, 4 * shape.pair))
        factors = [body.splat(body.load(F32, here, 4 * part)) for part in range(shape.pair)]
        parts = (lambda line: line,) if shape.pair == 1 else (body.first_of, body.second_of)
        for part, factor in zip(parts, factors, strict=True):
            totals = [body.fma(part(line), factor, total) for total, line in zip(totals, lines, strict=True)]
        return totals
