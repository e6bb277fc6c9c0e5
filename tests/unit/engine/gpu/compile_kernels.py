"""Compiles each kernel for a compute capability, which needs no device, in bfloat16 and in float32.

usage: python compile_kernels.py CAPABILITY bf16|fp32

Prints the kernels' names. Fails where one does not compile, takes more shared memory than a multiprocessor of that
capability gives to one program.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from argosy_services.engine.torch_engine.gpu.triton import low_rank, one_row, paged, rows

SHARED_BYTES = {89: 101_376, 90: 232_448}
# Llama 3 8B, and Gemma 2 2B whose heads are the largest that are served.
HEADS = {"SIZE": 128, "SIZE_PADDED": 128}
PLAIN = {"CAPPED": False, "WINDOWED": False, "GROUP": 4, **HEADS, "BLOCK": 16}
GEMMA = {**PLAIN, "CAPPED": True, "WINDOWED": True, "GROUP": 2, "SIZE": 256, "SIZE_PADDED": 256}
DECODE = {"GROUP_PADDED": 16, "SPLITS": paged._SPLITS}
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (paged._decode, PLAIN | DECODE),
    (paged._decode, GEMMA | DECODE),
    (paged._prompt, PLAIN),
    (paged._prompt, GEMMA),
    (paged._join, {**HEADS, "SPLITS": paged._SPLITS}),
    (rows._norm, {"SIZE": 4096, "PADDED": 4096, "OFFSET": False}),
    (rows._add_norm, {"SIZE": 4096, "PADDED": 4096, "OFFSET": False}),
    (rows._place, {"TURNED": 32, "KV_HEADS": 8, "HALF": 64, "PADDED": 64}),
    (rows._advance, {"BLOCK": 16, "TILE": 128}),
    (one_row._multiply, {"INPUTS": 4096, "BIASED": True, "SCALED": True, "MASKED": True, "EACH": 2, "PIECE": 2048}),
    (rows._gated, {"SILU": False, "ROOT": 0.8, "TILE": 1024}),
    (rows._quantize, {"SIZE": 14_336, "PADDED": 16_384, "LARGEST": 448.0, "LEAST": 1e-10}),
    (low_rank._shrink, {"TILE": 4096}),
    (low_rank._expand, {"RANK": 16, "TILE": 128}),
    (low_rank._shrink_piece, {"ROWS": 64, "RANK": 16, "TILE": 128}),
    (low_rank._expand_piece, {"ROWS": 64, "RANK": 16, "TILE": 128}),
]
_NUMBERS = (
    *("query", "key", "value", "keys", "values", "cos", "sin", "states", "added", "total", "normed"),
    *("weight", "bias", "gate", "up", "a", "b"),
)
TYPES = {
    **dict.fromkeys(_NUMBERS, "*bf16"),
    **dict.fromkeys(("parts", "weights", "low"), "*fp32"),
    **dict.fromkeys(("tables", "spans", "tasks", "ranks", "pieces"), "*i32"),
    **dict.fromkeys(("positions", "slots", "numbers", "likeliest"), "*i64"),
    **dict.fromkeys(("scale", "cap", "eps"), "fp32"),
    "out": "*bf16",
    "scales": "*fp32",
    "cache_stride": "i64",
}


def main() -> None:
    """Compiles all of them."""
    capability, number = int(sys.argv[1]), sys.argv[2]
    for kernel, fixed in KERNELS:
        constants = dict(fixed)
        if "GROUP" in constants:
            dtype = torch.bfloat16 if number == "bf16" else torch.float32
            tile = paged.decode_tile if kernel is paged._decode else paged.tile
            constants["TILE"] = tile(constants["SIZE_PADDED"], dtype)
            if kernel is paged._prompt:
                constants["VECTORS"] = paged.vectors(constants["SIZE"] * dtype.itemsize)
        names = [parameter.name for parameter in kernel.params]
        # Those of several modules are numbered.
        kinds = {name: TYPES.get(re.sub(r"_\d$", "", name), "i32") for name in names}
        signature = {name: "constexpr" if name in constants else kind for name, kind in kinds.items()}
        signature = {name: kind.replace("bf16", number) for name, kind in signature.items()}
        if kernel is rows._quantize:
            signature["out"] = "*fp8e4nv"
        if "ROWS" in constants:
            signature["low"] = signature["a" if "a" in names else "b"]
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled: Any = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        if compiled.metadata.shared > SHARED_BYTES[capability]:
            raise SystemExit(f"{kernel.__name__} takes {compiled.metadata.shared} bytes of shared memory")
        print(kernel.__name__)


if __name__ == "__main__":
    main()
