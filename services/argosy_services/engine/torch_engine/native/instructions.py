"""What processors have their own instructions for: bfloat16, and products of bytes and of shorts. Where one is missing,
it is written in others, here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from argosy_services.engine.torch_engine.native.emit import F32X, I8, I16, I16X, I32, I32X, LANES, Body, Value


class _BFloat(ir.Type):
    """bfloat16, which llvmlite has no class for."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BF16 = _BFloat()


def to_bfloat(body: Body, value: Value) -> Value:
    """float32 rounded to bfloat16, halves to even ones, as the int16 that its bits are."""
    builder = body.builder
    if body.processor.bfloat16:
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(_BF16, LANES)), I16X)
    bits = builder.bitcast(value, I32X)
    odd = builder.and_(builder.lshr(bits, body.whole(16)), body.whole(1))
    rounded = builder.add(bits, builder.add(odd, body.whole(0x7FFF)))
    return builder.trunc(builder.lshr(rounded, body.whole(16)), I16X)


def from_bfloat(body: Body, bits: Value) -> Value:
    """float32 of the bits of bfloat16."""
    builder = body.builder
    return builder.bitcast(builder.shl(builder.zext(bits, I32X), body.whole(16)), F32X)


def pairs(body: Body, total: Value, line: Value, given: Value) -> Value:
    """`total` plus, in each lane, the product of two bfloat16 in the int32 of `line` with those in `given`."""
    given = body.splat(given)
    if body.processor.bfloat16:
        kind = ir.VectorType(_BF16, 2 * LANES)
        left, right = body.builder.bitcast(line, kind), body.builder.bitcast(given, kind)
        return body.call("llvm.x86.avx512bf16.dpbf16ps.512", F32X, total, left, right)
    total = body.fma(first_of(body, line), first_of(body, given), total)
    return body.fma(second_of(body, line), second_of(body, given), total)


def first_of(body: Body, pair: Value) -> Value:
    """float32 of the first of two bfloat16 in each lane of int32."""
    return body.builder.bitcast(body.builder.shl(pair, body.whole(16)), F32X)


def second_of(body: Body, pair: Value) -> Value:
    """float32 of the second of two bfloat16 in each lane of int32."""
    return body.builder.bitcast(body.builder.and_(pair, body.whole(-(1 << 16))), F32X)


def byte_line(body: Body) -> ir.VectorType:
    """A step of bytes: for each lane as many as are multiplied at once."""
    return ir.VectorType(I8, body.processor.together * LANES)


def dots(body: Body, total: Value, line: Value, given: Value) -> Value:
    """`total` plus, in each lane, the products of unsigned bytes of `line` with the signed numbers in `given`: four
    of 8 bits, or two of 16.
    """
    builder, given = body.builder, body.splat(given)
    if body.processor.wide:
        return body.call("llvm.x86.avx512.vpdpbusd.512", I32X, total, line, builder.bitcast(given, byte_line(body)))
    return _short_dots(body, total, builder.zext(line, short_line()), given)


def short_line() -> ir.VectorType:
    """A step of numbers of 16 bits: two for each lane."""
    return ir.VectorType(I16, 2 * LANES)


def short_dots(body: Body, total: Value, line: Value, given: Value) -> Value:
    """`total` plus, in each lane, the products of two numbers of 16 bits of `line` with those in `given`."""
    return _short_dots(body, total, line, body.splat(given))


def _short_dots(body: Body, total: Value, line: Value, given: Value) -> Value:
    builder = body.builder
    given = builder.bitcast(given, short_line())
    if body.processor.wide:
        return body.call("llvm.x86.avx512.vpdpwssd.512", I32X, total, line, given)
    low, high = (
        body.call("llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, LANES // 2), left, right)
        for left, right in zip(body.halves(line), body.halves(given), strict=True)
    )
    return builder.add(total, builder.shuffle_vector(low, high, ir.Constant(I32X, list(range(LANES)))))


def low_halves(body: Body, line: Value) -> Value:
    """The lower four bits of each byte."""
    return body.builder.and_(line, ir.Constant(byte_line(body), [15] * byte_line(body).count))


def high_halves(body: Body, line: Value) -> Value:
    """The upper four bits of each byte."""
    return body.builder.lshr(line, ir.Constant(byte_line(body), [4] * byte_line(body).count))


def look_up(body: Body, table: Sequence[int], indices: Value) -> Value:
    """For each byte of `indices`, from 0 to 15, what `table` has there."""
    name = "llvm.x86.avx512.pshuf.b.512" if body.processor.wide else "llvm.x86.avx2.pshuf.b"
    lines = ir.Constant(byte_line(body), [*table] * (byte_line(body).count // len(table)))
    return body.call(name, byte_line(body), lines, indices)
