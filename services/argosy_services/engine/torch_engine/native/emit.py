"""A small language for kernels: Python that writes LLVM IR with explicit vectors.

Everything is 512 bits wide (16 float32 or int32); LLVM splits vectors on processors whose registers are shorter.
Addresses are byte offsets from pointers. Nothing here reorders or contracts arithmetic: a kernel computes what it says,
so that a row's result is the same whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from argosy_services.engine.torch_engine.native.processor import Processor

LANES = 16
LOG2_E = 1.4426950408889634
"""What turns a power of e into one of 2."""
I1, I8, I16, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()
PTR = ir.PointerType()
VOID = ir.VoidType()
F32X = ir.VectorType(F32, LANES)
I32X = ir.VectorType(I32, LANES)
I16X = ir.VectorType(I16, LANES)
I8X = ir.VectorType(I8, LANES)

Value = Any


class Module(ir.Module):
    """Kernels for one kind of processor."""

    def __init__(self, name: str, processor: Processor) -> None:
        super().__init__(name)
        self.processor = processor


class Cell:
    """A variable; LLVM turns it into a register."""

    def __init__(self, body: Body, kind: ir.Type) -> None:
        self._body = body
        with body.builder.goto_entry_block():
            self._slot = body.builder.alloca(kind)
        self._kind = kind

    def get(self) -> Value:
        """Its value."""
        return self._body.builder.load(self._slot, typ=self._kind)

    def set(self, value: Value) -> None:
        """Gives it a value."""
        self._body.builder.store(value, self._slot)


class Body:
    """The body of one function while it is written. Integers in Python stand for int64 constants."""

    def __init__(self, module: Module, name: str, arguments: Sequence[ir.Type], *, inline: bool = False) -> None:
        self.module = module
        self.processor = module.processor
        self.function = ir.Function(module, ir.FunctionType(VOID, arguments), name)
        if inline:
            self.function.attributes.add("alwaysinline")
            self.function.linkage = "internal"
        self.arguments = self.function.args
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def end(self) -> ir.Function:
        """Closes the function."""
        self.builder.ret_void()
        return self.function

    # Integers.

    def int(self, value: Value) -> Value:
        """An int64."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *terms: Value) -> Value:
        """The sum of int64s."""
        total = self.int(terms[0])
        for term in terms[1:]:
            total = self.builder.add(total, self.int(term))
        return total

    def sub(self, left: Value, right: Value) -> Value:
        """The difference of int64s."""
        return self.builder.sub(self.int(left), self.int(right))

    def mul(self, left: Value, right: Value) -> Value:
        """The product of int64s."""
        return self.builder.mul(self.int(left), self.int(right))

    def div(self, left: Value, right: Value) -> Value:
        """The quotient of int64s that are not negative."""
        return self.builder.udiv(self.int(left), self.int(right))

    def rem(self, left: Value, right: Value) -> Value:
        """The remainder of int64s that are not negative."""
        return self.builder.urem(self.int(left), self.int(right))

    def min(self, left: Value, right: Value) -> Value:
        """The smaller int64."""
        left, right = self.int(left), self.int(right)
        return self.builder.select(self.builder.icmp_signed("<", left, right), left, right)

    def max(self, left: Value, right: Value) -> Value:
        """The larger int64."""
        left, right = self.int(left), self.int(right)
        return self.builder.select(self.builder.icmp_signed(">", left, right), left, right)

    # Control.

    @contextmanager
    def loop(self, start: Value, end: Value, step: int = 1) -> Iterator[Value]:
        """Repeats its block for an int64 from `start` to below `end`."""
        builder = self.builder
        head, body, done = (self.function.append_basic_block(name) for name in ("head", "body", "done"))
        counter = self.cell(I64, self.int(start))
        builder.branch(head)
        builder.position_at_end(head)
        index = counter.get()
        builder.cbranch(builder.icmp_signed("<", index, self.int(end)), body, done)
        builder.position_at_end(body)
        yield index
        counter.set(builder.add(index, self.int(step)))
        builder.branch(head)
        builder.position_at_end(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Runs its block if an i1 is set."""
        with self.builder.if_then(condition):
            yield

    @contextmanager
    def forever(self) -> Iterator[Any]:
        """Repeats its block; yields a function that leaves it if an i1 is set."""
        builder = self.builder
        body, done = self.function.append_basic_block("again"), self.function.append_basic_block("left")
        builder.branch(body)
        builder.position_at_end(body)

        def leave(condition: Value) -> None:
            stay = self.function.append_basic_block("stay")
            builder.cbranch(condition, done, stay)
            builder.position_at_end(stay)

        yield leave
        builder.branch(body)
        builder.position_at_end(done)

    def less(self, left: Value, right: Value) -> Value:
        """Whether one int64 is below another."""
        return self.builder.icmp_signed("<", self.int(left), self.int(right))

    def equal(self, left: Value, right: Value) -> Value:
        """Whether two int64s are alike."""
        return self.builder.icmp_signed("==", self.int(left), self.int(right))

    # Memory.

    def cell(self, kind: ir.Type, initial: Value | None = None) -> Cell:
        """A variable."""
        made = Cell(self, kind)
        if initial is not None:
            made.set(initial)
        return made

    def at(self, pointer: Value, offset: Value) -> Value:
        """A pointer some bytes further on."""
        return self.builder.gep(pointer, [self.int(offset)], source_etype=I8)

    def load(self, kind: ir.Type, pointer: Value, offset: Value = 0, *, align: int | None = None) -> Value:
        """Reads a value; vectors need no more alignment than their elements unless `align` says so."""
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        return self.builder.load(self.at(pointer, offset), align=align or bytes_of(element), typ=kind)

    def store(self, value: Value, pointer: Value, offset: Value = 0) -> None:
        """Writes a value."""
        element = value.type.element if isinstance(value.type, ir.VectorType) else value.type
        self.builder.store(value, self.at(pointer, offset), align=bytes_of(element))

    def scratch(self, size: int) -> Value:
        """Bytes on the stack, aligned to a cache line."""
        with self.builder.goto_entry_block():
            made = self.builder.alloca(ir.ArrayType(I8, size))
            made.align = 64  # type: ignore[assignment]
        made.type = PTR
        return made

    def prefetch(self, pointer: Value, offset: Value) -> None:
        """Asks for a cache line."""
        self.call("llvm.prefetch.p0", VOID, self.at(pointer, offset), *(ir.Constant(I32, flag) for flag in (0, 2, 1)))

    # Vectors.

    def splat(self, value: Value) -> Value:
        """A number in all lanes."""
        kind = ir.VectorType(value.type, LANES)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        mask = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)

    def number(self, value: float) -> Value:
        """A float32 in all lanes."""
        return ir.Constant(F32X, [float(value)] * LANES)

    def whole(self, value: int) -> Value:
        """An int32 in all lanes."""
        return ir.Constant(I32X, [value] * LANES)

    def lanes(self) -> Value:
        """0 to 15 as int32."""
        return ir.Constant(I32X, list(range(LANES)))

    def below(self, count: Value) -> Value:
        """Whether each lane's number is below an int64, as i1."""
        return self.builder.icmp_signed("<", self.lanes(), self.splat(self.builder.trunc(count, I32)))

    def fma(self, left: Value, right: Value, addend: Value) -> Value:
        """Left * right + addend, rounded once."""
        return self.call(f"llvm.fma.{_name(addend.type)}", addend.type, left, right, addend)

    def fmul(self, left: Value, right: Value) -> Value:
        """The product of floats."""
        return self.builder.fmul(left, right)

    def fadd(self, left: Value, right: Value) -> Value:
        """The sum of floats."""
        return self.builder.fadd(left, right)

    def fsub(self, left: Value, right: Value) -> Value:
        """The difference of floats."""
        return self.builder.fsub(left, right)

    def fdiv(self, left: Value, right: Value) -> Value:
        """The quotient of floats."""
        return self.builder.fdiv(left, right)

    def larger(self, left: Value, right: Value) -> Value:
        """The larger float in each lane, and the right one where one is not a number."""
        return self.builder.select(self.builder.fcmp_ordered(">", left, right), left, right)

    def smaller(self, left: Value, right: Value) -> Value:
        """The smaller float in each lane, and the right one where one is not a number."""
        return self.builder.select(self.builder.fcmp_ordered("<", left, right), left, right)

    def absolute(self, value: Value) -> Value:
        """The float without its sign."""
        return self.call(f"llvm.fabs.{_name(value.type)}", value.type, value)

    def root(self, value: Value) -> Value:
        """The square root of floats."""
        return self.call(f"llvm.sqrt.{_name(value.type)}", value.type, value)

    def nearest(self, value: Value) -> Value:
        """Floats rounded to whole numbers, halves to even ones."""
        return self.call(f"llvm.rint.{_name(value.type)}", value.type, value)

    def to_int(self, value: Value) -> Value:
        """Whole floats as int32."""
        return self.builder.fptosi(value, I32X)

    def to_float(self, value: Value) -> Value:
        """int32 as floats."""
        return self.builder.sitofp(value, F32X)

    def sum(self, value: Value) -> Value:
        """The sum over the lanes, always in the same order."""
        return self._fold(value, self.fadd)

    def total(self, value: Value) -> Value:
        """The sum of int32 over the lanes."""
        return self.call("llvm.vector.reduce.add.v16i32", I32, value)

    def top(self, value: Value) -> Value:
        """The largest lane."""
        return self._fold(value, self.larger)

    def halves(self, value: Value) -> list[Value]:
        """The lower and the upper half of a vector."""
        kind, width = value.type, value.type.count // 2
        return [
            self.builder.shuffle_vector(
                value,
                ir.Constant(kind, ir.Undefined),
                ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))),
            )
            for start in (0, width)
        ]

    def _fold(self, value: Value, join: Any) -> Value:
        while value.type.count > 1:
            value = join(*self.halves(value))
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    def exp2(self, value: Value) -> Value:
        """2 to the power of floats of at most 127, to two units in the last place; 0 below -126.5.

        The power splits into a whole part, which becomes an exponent, and a rest, for which a polynomial is taken. In a
        sum with `_EXPONENT` the whole part, and 127 more, is what the last bits are.
        """
        builder = self.builder
        value = self.larger(value, self.number(-127.0))
        shifted = self.fadd(value, self.number(_EXPONENT))
        rest = self.fsub(value, self.fsub(shifted, self.number(_EXPONENT)))
        result = self.number(_EXP2[0])
        for coefficient in _EXP2[1:]:
            result = self.fma(result, rest, self.number(coefficient))
        bits = builder.shl(builder.bitcast(shifted, I32X), self.whole(23))
        return self.fmul(result, builder.bitcast(bits, F32X))

    # Functions.

    def call(self, name: str, result: ir.Type, *arguments: Value, variadic: bool = False) -> Value:
        """Calls a function of LLVM or of the C library."""
        function = self.module.globals.get(name)
        if function is None:
            kinds = [I64] if variadic else [argument.type for argument in arguments]
            function = ir.Function(self.module, ir.FunctionType(result, kinds, var_arg=variadic), name)
        return self.builder.call(function, list(arguments))


_EXPONENT = 1.5 * 2.0**23 + 127
# 2^x on [-0.5, 0.5], highest power first, fitted for the least relative error, 2e-9 before rounding.
_EXP2 = (
    *(0.0001534580806037411, 0.0013399932067841291, 0.009618489071726799, 0.05550328642129898),
    *(0.24022646248340607, 0.6931471824645996, 1.0),
)


def bytes_of(kind: ir.Type) -> int:
    """How many bytes a number takes."""
    if isinstance(kind, ir.PointerType):
        return 8
    return {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "float": 4}[str(kind)]


def _name(kind: ir.Type) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_name(kind.element)}"
    return {"float": "f32", "i32": "i32", "i64": "i64"}[str(kind)]
