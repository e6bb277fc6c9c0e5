"""Kernels for each kind of processor, compiled on any machine: those that this one cannot run are at least read."""

from __future__ import annotations

import re

import llvmlite.binding as llvm
import pytest

from argosy_services.engine.torch_engine.native import is_supported
from argosy_services.engine.torch_engine.native.attention import emit_attend
from argosy_services.engine.torch_engine.native.emit import Module
from argosy_services.engine.torch_engine.native.formats import format_of
from argosy_services.engine.torch_engine.native.gemm import emit_product
from argosy_services.engine.torch_engine.native.heads import Heads
from argosy_services.engine.torch_engine.native.lora import emit_adapt
from argosy_services.engine.torch_engine.native.processor import AVX2, AVX512, AVX512_BF16, X86_64, Processor, host
from argosy_services.engine.torch_engine.native.rotate import emit_rotate
from argosy_services.engine.torch_engine.native.rows import DECODER, ENCODER, emit_embed, emit_rows
from argosy_services.engine.torch_engine.native.writer import LARGEST, emit_write

from .test_native_decoder import PLAIN

pytestmark = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")

# A processor of each kind, as LLVM calls it.
EXAMPLES = {AVX512_BF16: "znver4", AVX512: "cascadelake", AVX2: "haswell"}


def assembly(kind: Processor, form: str) -> str:
    """The code of all kernels that depend on a format, for a kind of processor: int16 is that of encoders."""
    written, made = Module("kernels", kind), format_of(form, kind)
    for each in dict.fromkeys((made, made.companion)):
        emit_product(written, each)
    if form == "int16":
        heads = Heads.of(PLAIN, "float32", kind)
        emit_rows(written, made.inputs, ENCODER, epsilon=1e-5)
        emit_rotate(written, heads, normed=False)
        emit_attend(written, heads, causal=False)
    else:
        heads = Heads.of(PLAIN, "bfloat16", kind)
        emit_rows(written, made.inputs, DECODER, epsilon=1e-5)
        emit_rotate(written, heads, normed=True)
        emit_attend(written, heads)
        emit_embed(written, "bfloat16")
        emit_adapt(written, made.inputs)
        for source in ("bfloat16", "float32") if made.companion.name in LARGEST else (form,):
            emit_write(written, made.companion, source)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(cpu=EXAMPLES[kind], opt=3)
    module = llvm.parse_assembly(str(written))
    module.triple = target.triple
    module.verify()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    return target.emit_assembly(module)


@pytest.mark.parametrize("form", ["bfloat16", "int16", "int8", "int4"])
@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.name)
def test_a_kind_of_processor_has_an_instruction_for_everything(kind: Processor, form: str) -> None:
    code = assembly(kind, form)
    assert not re.search(r"\tcallq?\t", code), "a function of a library would convert numbers one by one"
    assert ("zmm" in code) is kind.wide
    assert ("vdpbf16ps" in code) is (kind.bfloat16 and form != "int16")
    if form == "int16":
        assert ("vpdpwssd" in code) is kind.wide
        assert "vpmaddwd" in code or kind.wide
    elif form != "bfloat16":
        assert ("vpdpbusd" in code) is kind.wide
        assert ("vpmaddwd" in code) is not kind.wide


def test_a_kind_leaves_unused_what_others_have_more() -> None:
    assert host().is_here
    assert X86_64.is_here
    assert "+avx512" not in AVX2.features
    for kind in EXAMPLES:
        if kind.is_here:
            assert all(f"+{need}" in kind.features.split(",") for need in kind.needs)
