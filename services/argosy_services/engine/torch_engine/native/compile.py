"""Turns LLVM IR into machine code for the processor that runs it."""

from __future__ import annotations

import functools
import threading

import llvmlite.binding as llvm
from llvmlite import ir

# What the kernels of reduced types need: AVX-512 with its byte, VNNI and bfloat16 instructions.
_WIDE = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "avx512bf16")

_lock = threading.Lock()


class Machine:
    """Compiled functions by name. They live as long as this object."""

    def __init__(self, module: ir.Module) -> None:
        with _lock:
            target = _target()
            compiled = llvm.parse_assembly(str(module))
            compiled.triple = target.triple
            compiled.verify()
            options = llvm.create_pipeline_tuning_options(speed_level=2)
            # The kernels are vectors and unrolled already.
            options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
            builder = llvm.create_pass_builder(target, options)
            builder.getModulePassManager().run(compiled, builder)
            self._engine = llvm.create_mcjit_compiler(compiled, target)
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function is."""
        return self._engine.get_function_address(name)


@functools.cache
def has_wide_vectors() -> bool:
    """Whether this processor computes int8 and bfloat16 products as the kernels of those types do."""
    features = llvm.get_host_cpu_features()
    return all(features.get(name, False) for name in _WIDE)


def _target() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)
