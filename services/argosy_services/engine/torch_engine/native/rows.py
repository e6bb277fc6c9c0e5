"""Kernels that work on one row each: embedding, normalisation, activation, quantization, and the largest logit.

What a product takes in is written by one of these kernels for every format of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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
    LOG2_E,
    PTR,
    Body,
    Module,
    Value,
    bytes_of,
)
from argosy_services.engine.torch_engine.native.instructions import from_bfloat, to_bfloat
from argosy_services.engine.torch_engine.native.layout import GROUP, Arguments, Embed, Largest, Reader, Rows, Step
from argosy_services.engine.torch_engine.native.panels import along, row_at

_INT13 = 4_095
DECODER, ENCODER = ("norm", "plain", "gate"), ("layer_norm", "plain", "gelu")
"""The kernels that each of them needs."""
# The values of a row at an index that is a multiple of 16.
Source = Callable[[Value], Value]


def emit_rows(module: Module, form: str, kinds: Sequence[str] = DECODER, *, epsilon: float) -> None:
    """Writes `<kind>_<form>` for some kinds; their arguments are `layout.Rows`.

    `norm` is RMSNorm (Zhang and Sennrich, 2019), `gate` is SiLU of a row's first half times its second half (SwiGLU,
    Shazeer, 2020), `gelu` the exact GELU (Hendrycks and Gimpel, 2016). `layer_norm` (Ba et al., 2016) takes weights
    and then biases for `norm`, and overwrites its inputs with what it gives. For int13 all of them overwrite what they
    read last.
    """
    for kind in kinds:
        body, row, get = _begin(module, f"{kind}_{form}", Rows)
        size = get("size")
        source_row = body.load(I64, body.arguments[2], body.mul(get("indices_slot"), 8))
        listed = body.builder.inttoptr(source_row, PTR)
        with body.builder.if_else(body.equal(source_row, 0)) as (whole, chosen):
            with whole:
                same = body.builder.block
            with chosen:
                found = body.load(I64, listed, body.mul(row, 8))
                other = body.builder.block
        taken = body.builder.phi(I64)
        taken.add_incoming(row, same)
        taken.add_incoming(found, other)
        inputs = body.at(get.pointer("inputs"), body.mul(taken, get("stride")))
        if kind == "norm":
            source = _normed(body, inputs, get.pointer("norm"), size, epsilon)
        elif kind == "layer_norm":
            source = _layer_normed(body, inputs, get.pointer("norm"), size, epsilon)
        elif kind == "gate":
            source = _gated(body, inputs, size)
        elif kind == "gelu":
            source = _gelu(body, inputs)
        else:
            source = _read(body, inputs)
        _SINKS[form](body, row, get, inputs, source)
        body.end()


def emit_embed(module: Module, table_kind: str) -> None:
    """Writes `embed`: the rows of a table `[vocab, size]` that tokens name, as float32; arguments `layout.Embed`."""
    body, row, get = _begin(module, "embed", Embed)
    kind, width = (I16X, 2) if table_kind == "bfloat16" else (F32X, 4)
    tokens = body.load(PTR, body.arguments[2], 8 * Step.TOKENS)
    token = body.load(I64, tokens, body.mul(row, 8))
    size = get("size")
    table = body.at(get.pointer("table"), body.mul(token, body.mul(size, width)))
    out = body.at(get.pointer("out"), body.mul(row, get("stride")))
    with body.loop(0, size, LANES) as index:
        value = body.load(kind, table, body.mul(index, width))
        value = from_bfloat(body, value) if width == 2 else value
        body.store(value, out, body.mul(index, 4))
    body.end()


def emit_largest(module: Module) -> None:
    """Writes `largest`: the index of each row's largest logit, the first of several; arguments `layout.Largest`."""
    body, row, get = _begin(module, "largest", Largest)
    logits = body.at(get.pointer("logits"), body.mul(row, get("stride")))
    best, where = body.cell(F32X, body.number(float("-inf"))), body.cell(I32X, body.whole(0))
    size = get("size")
    builder = body.builder
    whole = body.mul(body.div(size, LANES), LANES)

    def consider(value: Value, index: Value) -> None:
        better = builder.fcmp_ordered(">", value, best.get())
        places = builder.add(body.splat(builder.trunc(index, I32)), body.lanes())
        where.set(builder.select(better, places, where.get()))
        best.set(builder.select(better, value, best.get()))

    with body.loop(0, whole, LANES) as index:
        consider(body.load(F32X, logits, body.mul(index, 4)), index)
    with body.when(body.less(whole, size)):
        inside = body.below(body.sub(size, whole))
        value = body.load(F32X, logits, body.mul(whole, 4))
        consider(builder.select(inside, value, body.number(float("-inf"))), whole)
    top = body.splat(body.top(best.get()))
    never = body.whole(2**31 - 1)
    candidates = builder.select(builder.fcmp_ordered("==", best.get(), top), where.get(), never)
    first = body.call("llvm.vector.reduce.smin.v16i32", I32, candidates)
    body.store(builder.sext(first, I64), get.pointer("out"), body.mul(row, 8))
    body.end()


def each_row(module: Module, name: str) -> Body:
    """Writes a kernel whose tasks are some rows each, one after another, and gives the body for one row.

    Neighbours share cache lines, and should not be on different cores.
    """
    one = Body(module, f"{name}_row", [PTR, I64, PTR], inline=True)
    some = Body(module, name, [PTR, I64, PTR])
    arguments, task, step = some.arguments
    grain = some.load(I64, step, 8 * Step.GRAIN)
    first = some.mul(task, grain)
    with some.loop(first, some.min(some.add(first, grain), some.load(I64, step, 8 * Step.ROWS))) as row:
        some.builder.call(one.function, [arguments, row, step])
    some.end()
    return one


def _begin(module: Module, name: str, arguments: Arguments) -> tuple[Body, Value, Reader]:
    body = each_row(module, name)
    return body, body.arguments[1], arguments.reader(body, body.arguments[0])


def _read(body: Body, inputs: Value) -> Source:
    return lambda index: body.load(F32X, inputs, body.mul(index, 4))


def _normed(body: Body, inputs: Value, weight: Value, size: Value, epsilon: float) -> Source:
    squares = body.cell(F32X, body.number(0.0))
    with body.loop(0, size, LANES) as index:
        value = body.load(F32X, inputs, body.mul(index, 4))
        squares.set(body.fma(value, value, squares.get()))
    mean = body.fdiv(body.sum(squares.get()), body.builder.uitofp(size, F32))
    factor = body.fdiv(ir.Constant(F32, 1.0), body.root(body.fadd(mean, ir.Constant(F32, epsilon))))
    factors = body.splat(factor)

    def value(index: Value) -> Value:
        place = body.mul(index, 4)
        return body.fmul(body.fmul(body.load(F32X, inputs, place), factors), body.load(F32X, weight, place))

    return value


def _layer_normed(body: Body, inputs: Value, norm: Value, size: Value, epsilon: float) -> Source:
    count = body.builder.uitofp(size, F32)
    total, squares = body.cell(F32X, body.number(0.0)), body.cell(F32X, body.number(0.0))
    with body.loop(0, size, LANES) as index:
        total.set(body.fadd(total.get(), body.load(F32X, inputs, body.mul(index, 4))))
    mean = body.splat(body.fdiv(body.sum(total.get()), count))
    with body.loop(0, size, LANES) as index:
        value = body.fsub(body.load(F32X, inputs, body.mul(index, 4)), mean)
        squares.set(body.fma(value, value, squares.get()))
    variance = body.fdiv(body.sum(squares.get()), count)
    deviation = body.root(body.fadd(variance, ir.Constant(F32, epsilon)))
    factors = body.splat(body.fdiv(ir.Constant(F32, 1.0), deviation))
    biases = body.at(norm, body.mul(size, 4))

    def value(index: Value) -> Value:
        place = body.mul(index, 4)
        normed = body.fmul(body.fsub(body.load(F32X, inputs, place), mean), factors)
        result = body.fma(normed, body.load(F32X, norm, place), body.load(F32X, biases, place))
        body.store(result, inputs, place)
        return result

    return value


def _gelu(body: Body, inputs: Value) -> Source:
    def value(index: Value) -> Value:
        # Further to the left everything is 0, further to the right the error function is 1.
        given = body.larger(body.load(F32X, inputs, body.mul(index, 4)), body.number(-_ERF_END))
        inside = body.smaller(given, body.number(_ERF_END))
        square = body.fmul(inside, inside)
        above, below = (_polynomial(body, square, coefficients) for coefficients in (_ERF_ABOVE, _ERF_BELOW))
        error = body.fdiv(body.fmul(inside, above), below)
        half = body.fmul(given, body.number(0.5))
        return body.fma(half, error, half)

    return value


def _polynomial(body: Body, value: Value, coefficients: Sequence[float]) -> Value:
    """By Horner's rule, the highest power first."""
    result = body.number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = body.fma(result, value, body.number(coefficient))
    return result


def _gated(body: Body, inputs: Value, size: Value) -> Source:
    def value(index: Value) -> Value:
        gate = body.load(F32X, inputs, body.mul(index, 4))
        up = body.load(F32X, inputs, body.mul(body.add(index, size), 4))
        decay = body.exp2(body.smaller(body.fmul(gate, body.number(-LOG2_E)), body.number(127.0)))
        return body.fmul(body.fdiv(gate, body.fadd(decay, body.number(1.0))), up)

    return value


def _to_float32(body: Body, row: Value, get: Reader, inputs: Value, source: Source) -> None:
    size = get("size")
    out = row_at(body, get.pointer("quantized"), row, get("row_bytes"))
    with body.loop(0, size, LANES) as index:
        body.store(source(index), out, along(body, body.mul(index, 4)))


def _to_bfloat16(body: Body, row: Value, get: Reader, inputs: Value, source: Source) -> None:
    size = get("size")
    out = row_at(body, get.pointer("quantized"), row, get("row_bytes"))
    with body.loop(0, size, LANES) as index:
        body.store(to_bfloat(body, source(index)), out, along(body, body.mul(index, 2)))


def _to_whole(body: Body, row: Value, get: Reader, inputs: Value, source: Source, *, kind: ir.VectorType) -> None:
    """Whole numbers, symmetric around 0, with a scale for each group."""
    builder, size = body.builder, get("size")
    out = row_at(body, get.pointer("quantized"), row, get("row_bytes"))
    groups = body.div(size, GROUP)
    first = body.mul(body.mul(groups, row), 4)
    scales = body.at(get.pointer("scales"), first)
    offsets = body.at(get.pointer("offsets"), first)
    width = bytes_of(kind.element)
    with body.loop(0, groups) as group:
        start = body.mul(group, GROUP)
        values = [source(body.add(start, place)) for place in range(0, GROUP, LANES)]
        largest = body.absolute(values[0])
        for value in values[1:]:
            largest = body.larger(body.absolute(value), largest)
        scale, inverse = quantizing(body, body.top(largest), largest_of(kind))
        factor = body.splat(inverse)
        total = body.whole(0)
        for place, value in enumerate(values):
            whole = body.to_int(body.nearest(body.fmul(value, factor)))
            total = builder.add(total, whole)
            at = along(body, body.mul(body.add(start, place * LANES), width))
            body.store(builder.trunc(whole, kind), out, at)
        body.store(scale, scales, body.mul(group, 4))
        body.store(builder.mul(body.total(total), ir.Constant(I32, -128)), offsets, body.mul(group, 4))


def _to_13_bits(body: Body, row: Value, get: Reader, inputs: Value, source: Source) -> None:
    """Whole numbers of at most 4,095 with a scale for each of the large groups."""
    group_size, width = get("group"), 2
    out = row_at(body, get.pointer("quantized"), row, get("row_bytes"))
    groups = body.div(get("size"), group_size)
    scales = body.at(get.pointer("scales"), body.mul(body.mul(groups, row), 4))
    with body.loop(0, groups) as group:
        start = body.mul(group, group_size)
        end = body.add(start, group_size)
        largest = body.cell(F32X, body.number(0.0))
        with body.loop(start, end, LANES) as index:
            value = source(index)
            body.store(value, inputs, body.mul(index, 4))
            largest.set(body.larger(body.absolute(value), largest.get()))
        scale, inverse = quantizing(body, body.top(largest.get()), _INT13)
        factor = body.splat(inverse)
        with body.loop(start, end, LANES) as index:
            value = body.fmul(body.load(F32X, inputs, body.mul(index, 4)), factor)
            whole = body.to_int(body.nearest(value))
            body.store(body.builder.trunc(whole, I16X), out, along(body, body.mul(index, width)))
        body.store(scale, scales, body.mul(group, 4))


def largest_of(kind: ir.VectorType) -> int:
    """The largest number of a type of whole numbers."""
    return (1 << kind.element.width - 1) - 1


def quantizing(body: Body, top: Value, largest: int) -> tuple[Value, Value]:
    """The scale of numbers of which `top` is the largest, and what brings them to at most `largest`; for a float32, or
    for each of a vector.

    Zeros, and numbers that no division can scale, have the scale 0 and become 0.
    """
    builder = body.builder
    limit, least, nothing = (_alike(top, value) for value in (largest, 1e-30, 0.0))
    some = builder.fcmp_ordered(">", top, least)
    scale = builder.select(some, body.fdiv(top, limit), nothing)
    return scale, builder.select(some, body.fdiv(limit, top), nothing)


def _alike(value: Value, number: float) -> Value:
    """A number as a constant of a value's type."""
    kind = value.type
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else float(number))


# erf(x / sqrt 2) / x up to here, as a quotient of polynomials in the square of x, fitted for the least error: 1.4e-8
# before rounding.
_ERF_END = 5.5
_ERF_ABOVE = (
    *(4.54986673647715e-08, 1.2704261188399409e-05, 0.0003376539714867444, 0.009354537416301397),
    *(0.06770554250450546, 0.797884469245216),
)
_ERF_BELOW = (
    *(1.1975039381873786e-06, 7.364794149010291e-05, 0.001884452267160447, 0.02864594403598241),
    *(0.2515222319107615, 1.0),
)

_SINKS: dict[str, Callable[[Body, Value, Reader, Value, Source], None]] = {
    "float32": _to_float32,
    "bfloat16": _to_bfloat16,
    "int8": partial(_to_whole, kind=I8X),
    "int13": _to_13_bits,
    "int16": partial(_to_whole, kind=I16X),
}
