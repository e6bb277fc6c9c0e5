"""What kernels are written for: the vector instructions of a processor, and the shapes that suit its registers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import llvmlite.binding as llvm

_WIDE = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")


@dataclass(frozen=True, slots=True)
class Processor:
    """A kind of x86-64 processor, by the `needs` that LLVM calls its features.

    `wide` ones have 32 registers of 512 bits and dot products of bytes, the others 16 registers of 256 bits. `bfloat16`
    says that dot products of that type are there; elsewhere they are taken apart into float32. `reduced` says that
    int8, int4 and bfloat16 are computed at all.
    """

    name: str
    needs: tuple[str, ...]
    wide: bool = False
    bfloat16: bool = False
    reduced: bool = True

    @property
    def vectors(self) -> int:
        """How many vectors of 16 numbers a tile of six rows is wide, so that its sums stay in registers."""
        return 4 if self.wide else 1

    @property
    def together(self) -> int:
        """Neighbouring inputs that one instruction multiplies with bytes of weights, in each lane of 32 bits.

        Without dot products of bytes weights are widened, and two inputs of 16 bits take the place of four of 8: as
        many products in a cycle as with instructions for bytes, which would saturate, and finer inputs.
        """
        return 4 if self.wide else 2

    @property
    def features(self) -> str:
        """The features of this machine's processor that code for this kind may use, as LLVM takes them."""
        features = llvm.get_host_cpu_features()
        for name in features:
            if not self.wide and name.startswith("avx512"):
                features[name] = False
        return features.flatten()

    @property
    def is_here(self) -> bool:
        """Whether this machine runs code for this kind."""
        features = llvm.get_host_cpu_features()
        return all(features.get(name, False) for name in self.needs)


AVX512_BF16 = Processor("AVX-512 with VNNI and bfloat16", (*_WIDE, "avx512bf16"), wide=True, bfloat16=True)
AVX512 = Processor("AVX-512 with VNNI", _WIDE, wide=True)
AVX2 = Processor("AVX2", ("avx2", "fma"))
X86_64 = Processor("x86-64", (), reduced=False)
PROCESSORS = (AVX512_BF16, AVX512, AVX2, X86_64)
"""Fastest first."""


@functools.cache
def host() -> Processor:
    """The fastest kind that this machine is."""
    return next(kind for kind in PROCESSORS if kind.is_here)
