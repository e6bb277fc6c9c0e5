"""Products of a step's rows with a weight matrix, for each format of weights.

A task is a chunk of `CHUNK` columns and at most `ROWS` rows. Weights are packed so that the columns whose sums fit into
registers beside each other are one stream: for each step along the inputs, one vector for every 16 columns. A tile of
up to six rows and one stream is summed in registers. However many rows a tile has, each of its sums is made in the same
order.
"""

from __future__ import annotations

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import F32X, I64, LANES, PTR, Body, Module, Value
from argosy_services.engine.torch_engine.native.formats import Format, Operands
from argosy_services.engine.torch_engine.native.layout import (
    CHUNK,
    AdapterField,
    Product,
    Reader,
    Step,
    Tasks,
    adapter_entry,
    adapter_task,
)
from argosy_services.engine.torch_engine.native.panels import PANEL

# Rows whose sums are in registers at once, and those that share one pass over a chunk of weights.
HEIGHT = PANEL
ROWS = 22 * HEIGHT
# With so few rows the time goes into reading weights, which are asked for so many bytes ahead of their use. More rows
# leave time to ask for the whole chunk that the thread takes next, and still more for the factors of adapters too;
# prompts multiply each weight so often that they need nothing.
_FEW = 2
_AHEAD = 2_048


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
    vectors = body.processor.vectors
    columns = vectors * LANES
    streams = CHUNK // columns
    stream_bytes = body.div(get("chunk_bytes"), streams)
    group = form.group(get)
    groups = body.mul(body.div(size, group), 4)

    def weights(stream: Value) -> Value:
        return body.at(get.pointer("weights"), body.mul(stream, stream_bytes))

    def tile(stream: Value, row: Value, rows: int, ahead: Value = None, asked: tuple[Value, ...] = ()) -> None:
        """Computes `rows` rows of a stream."""
        column_bytes = body.mul(stream, columns * 4)
        operands = Operands(
            weights=weights(stream),
            inputs=body.at(places["inputs"], body.mul(row, row_bytes)),
            scales=body.at(places["scales"], body.mul(row, groups)),
            offsets=body.at(places["offsets"], body.mul(row, groups)),
            size=size,
            ahead=ahead,
            asked=asked,
            origin=body.builder.ptrtoint(weights(stream), I64),
            group=group,
        )
        sums = form.multiply(body, rows, operands)
        out = body.at(places["out"], body.add(body.mul(row, stride), column_bytes))
        for vector in range(vectors):
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
    tiles = body.div(body.sub(whole, first), HEIGHT)
    many = body.less(ROWS, total)
    some = body.builder.and_(body.builder.not_(many), body.less(vectors - 1, tiles))
    following = _Following(body, get, step, tiles=tiles, pieces=vectors, piece=body.div(stream_bytes, vectors))
    start = body.mul(chunk, streams)
    with body.loop(start, body.add(start, streams)) as stream:
        with body.when(many), body.loop(first, whole, HEIGHT) as row:
            tile(stream, row, HEIGHT)
        with body.when(some), body.loop(first, whole, HEIGHT) as row:
            index = body.div(body.sub(row, first), HEIGHT)
            tile(stream, row, HEIGHT, asked=following.asked(weights(stream), stream, index))
        if vectors > 1:
            with body.when(body.builder.not_(body.builder.or_(many, some))), body.loop(first, whole, HEIGHT) as row:
                tile(stream, row, HEIGHT, ahead)
        for rows in range(1, HEIGHT):
            with body.when(body.equal(rest, rows)):
                tile(stream, whole, rows, _AHEAD if rows <= _FEW else ahead)
    body.end()


class _Following:
    """What the tiles of a step of some rows ask for while they are computed.

    Both the chunk that the thread takes next and the factors of the step's adapters that come after the product are
    divided into pieces, and each tile asks for one of both: asked for faster, they would hold up the product, which has
    its own weights to read.
    """

    def __init__(self, body: Body, get: Reader, step: Value, *, tiles: Value, piece: Value, pieces: int) -> None:
        """`tiles` are those of one stream. A piece has `piece` bytes, a stream's weights have `pieces` of them."""
        self._body, self._get, self._step = body, get, step
        self._tiles, self._piece, self._pieces = tiles, piece, pieces
        adapted = body.load(I64, step, 8 * Tasks.ADAPTED_ONE)
        self._tasks = body.builder.select(body.equal(get("table"), 0), body.int(0), adapted)

    def asked(self, weights: Value, stream: Value, index: Value) -> tuple[Value, ...]:
        """Where the pieces begin that the tile `index` of a stream asks for. Where nothing is left to ask for, these
        are the tile's own weights."""
        body, get = self._body, self._get
        own = body.builder.ptrtoint(weights, I64)
        chunk = body.add(own, get("ahead"), body.mul(index, self._piece))
        chunk = body.builder.select(body.less(index, self._pieces), chunk, own)
        factors = body.cell(I64, own)
        with body.when(body.less(0, self._tasks)):
            number = body.add(body.mul(stream, self._tiles), index)
            *_, slot = adapter_task(body, self._step, body.rem(number, self._tasks))
            first, end = (
                body.load(I64, adapter_entry(body, get, slot, get(name)), 8 * field)
                for name, field in (("first_module", AdapterField.DOWN), ("last_module", AdapterField.END))
            )
            place = body.add(first, body.mul(body.div(number, self._tasks), self._piece))
            factors.set(body.builder.select(body.less(place, end), place, own))
        return tuple(body.builder.inttoptr(each, PTR) for each in (chunk, factors.get()))
