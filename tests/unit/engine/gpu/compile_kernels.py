"""Compiles each kernel for a compute capability, which needs no device, for bfloat16 and heads of 128 numbers.

usage: python compile_kernels.py CAPABILITY

Prints the kernels' names. Fails where one does not compile, takes more shared memory than a multiprocessor of that
capability gives to one program.
"""

from __future__ import annotations

import sys
from typing import Any

import torch  # noqa: F401  Before triton, which imports it while it is half loaded.
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from argosy_services.engine.torch_engine.gpu.triton import low_rank, paged, rows

SHARED_BYTES = {89: 101_376, 90: 232_448}
HEADS = {"SIZE": 128, "SIZE_PADDED": 128}
PAGED = {"CAPPED": True, "WINDOWED": True, "GROUP": 4, **HEADS, "BLOCK": 16, "TILE": paged._TILE}
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (paged._decode, {**PAGED, "GROUP_PADDED": 16, "SPLITS": paged._SPLITS}),
    (paged._prompt, {**PAGED, "VECTORS": paged._VECTORS}),
    (paged._join, {**HEADS, "SPLITS": paged._SPLITS}),
    (rows._norm, {"SIZE": 4096, "PADDED": 4096, "OFFSET": False}),
    (rows._rotate, {"HALF": 64, "PADDED": 64}),
    (rows._gated, {"SILU": False, "ROOT": 0.8, "TILE": 1024}),
    (rows._quantize, {"SIZE": 14_336, "PADDED": 16_384, "LARGEST": 448.0, "LEAST": 1e-10}),
    (low_rank._shrink, {"RANK": 16, "TILE": 256}),
    (low_rank._expand, {"RANK": 16, "TILE": 128}),
]
TYPES = {
    **dict.fromkeys(("query", "keys", "values", "states", "weight", "cos", "sin", "gate", "up", "a", "b"), "*bf16"),
    **dict.fromkeys(("parts", "weights", "low"), "*fp32"),
    **dict.fromkeys(("tables", "spans", "tasks", "ranks"), "*i32"),
    **dict.fromkeys(("positions", "slots"), "*i64"),
    **dict.fromkeys(("scale", "cap", "eps"), "fp32"),
    "out": "*bf16",
    "scales": "*fp32",
    "cache_stride": "i64",
}


def main() -> None:
    """Compiles all of them."""
    capability = int(sys.argv[1])
    for kernel, constants in KERNELS:
        names = [parameter.name for parameter in kernel.params]
        signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in names}
        if kernel is rows._quantize:
            signature["out"] = "*fp8e4nv"
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled: Any = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        if compiled.metadata.shared > SHARED_BYTES[capability]:
            raise SystemExit(f"{kernel.__name__} takes {compiled.metadata.shared} bytes of shared memory")
        print(kernel.__name__)


if __name__ == "__main__":
    main()
