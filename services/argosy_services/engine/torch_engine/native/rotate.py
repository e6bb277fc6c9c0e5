"""What goes before attention: rotary positions, and writing keys and values into the cache of `heads.py`."""

from __future__ import annotations

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import (
    F32,
    F32X,
    I32,
    I32X,
    I64,
    LANES,
    LOG2_E,
    PTR,
    Body,
    Module,
    Value,
)
from argosy_services.engine.torch_engine.native.heads import Heads
from argosy_services.engine.torch_engine.native.instructions import to_bfloat
from argosy_services.engine.torch_engine.native.layout import TILE, Rotate, Step
from argosy_services.engine.torch_engine.native.rows import each_row

_LARGEST = 1e30


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
                narrow = to_bfloat(body, scaled) if width == 2 else scaled
                body.store(narrow, turned, width * (start + part))

    def finite(source: Value, index: Value) -> Value:
        """Values as numbers, whatever an adapter made of them: what is hidden from a sequence it multiplies by 0."""
        value = body.load(F32X, source, body.mul(index, 4))
        return body.smaller(body.larger(value, body.number(-_LARGEST)), body.number(_LARGEST))

    query_norm = get.pointer("query_norm") if normed else None
    key_norm = get.pointer("key_norm") if normed else None
    head_bytes = shape.dim * 4
    with body.loop(0, shape.heads) as head:
        turn(body.at(inputs, body.mul(head, head_bytes)), query_norm, shape.scale * LOG2_E, shape.given_width)
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
                body.store(finite(source, index), line, body.mul(index, 4))
        else:
            line = body.at(line, body.mul(body.rem(lane, 2), 2))
            with body.loop(0, shape.dim, LANES) as index:
                narrow = to_bfloat(body, finite(source, index))
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
