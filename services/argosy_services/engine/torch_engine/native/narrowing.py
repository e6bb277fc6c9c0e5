"""Turns the factors of adapters into the bytes that `lora.py` reads: a pass over them where torch makes ten."""

from __future__ import annotations

import ctypes

import torch
from llvmlite import ir

from argosy_services.engine.torch_engine.native.compile import Machine, compiled
from argosy_services.engine.torch_engine.native.emit import (
    F32X,
    I8X,
    I16X,
    I32,
    I64,
    LANES,
    PTR,
    Body,
    Module,
    Value,
)
from argosy_services.engine.torch_engine.native.instructions import from_bfloat
from argosy_services.engine.torch_engine.native.processor import Processor
from argosy_services.engine.torch_engine.native.rows import quantizing


class Narrower:
    """Quantizes matrices; for any thread."""

    def __init__(self, processor: Processor) -> None:
        self._together = processor.together
        self._machine = Machine(compiled(lambda: _emit(processor), "narrow", processor))
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 2)
        self._narrow = kind(self._machine.address("narrow"))

    def __call__(self, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of bfloat16 `[out, in]`, both multiples of 16: the bytes, uint8 `[out / 16, in / together, 16, together]`,
        128 too large, and the scale of each output, float32 `[out]`.
        """
        outputs, size = matrix.shape
        if matrix.dtype is not torch.bfloat16 or outputs % LANES or size % LANES:
            raise ValueError(f"cannot narrow {matrix.dtype} {list(matrix.shape)}")
        matrix = matrix.contiguous()
        together, scales = self._together, torch.empty(outputs)
        narrowed = torch.empty(outputs // LANES, size // together, LANES, together, dtype=torch.uint8)
        self._narrow(matrix.data_ptr(), narrowed.data_ptr(), scales.data_ptr(), outputs, size)
        return narrowed, scales


def _emit(processor: Processor) -> Module:
    module = Module("narrow", processor)
    together = processor.together
    words_kind = ir.VectorType(ir.IntType(8 * together), LANES // together)
    body = Body(module, "narrow", [PTR, PTR, PTR, I64, I64])
    matrix, out, scales, outputs, size = body.arguments
    with body.loop(0, outputs) as row:
        values = body.at(matrix, body.mul(row, body.mul(size, 2)))
        scale, inverse = quantizing(body, _largest(body, values, size), I8X)
        body.store(scale, scales, body.mul(row, 4))
        chunk = body.at(out, body.mul(body.div(row, LANES), body.mul(size, LANES)))
        lane = body.at(chunk, body.mul(body.rem(row, LANES), together))
        factor = body.splat(inverse)
        with body.loop(0, size, LANES) as index:
            whole = body.to_int(body.nearest(body.fmul(_load(body, values, index), factor)))
            bytes_ = body.builder.trunc(body.builder.add(whole, body.whole(128)), I8X)
            words = body.builder.bitcast(bytes_, words_kind)
            for number in range(words_kind.count):
                word = body.builder.extract_element(words, ir.Constant(I32, number))
                # A step along the inputs takes a line of all sixteen outputs.
                body.store(word, lane, body.mul(body.add(body.div(index, together), number), together * LANES))
    body.end()
    return module


def _largest(body: Body, values: Value, size: Value) -> Value:
    largest = body.cell(F32X, body.number(0.0))
    with body.loop(0, size, LANES) as index:
        largest.set(body.larger(body.absolute(_load(body, values, index)), largest.get()))
    return body.top(largest.get())


def _load(body: Body, values: Value, index: Value) -> Value:
    return from_bfloat(body, body.load(I16X, values, body.mul(index, 2)))
