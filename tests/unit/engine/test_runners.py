"""Which kernels compute a model's steps, without a checkpoint."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from argosy_services.engine.dtypes import compute_dtype
from argosy_services.engine.torch_engine import gpu, runners
from argosy_services.engine.torch_engine.config import DecoderConfig, LayerKind, RopeConfig, UnsupportedModelError
from argosy_services.engine.torch_engine.native import is_supported, processor
from argosy_services.engine.torch_engine.native.processor import X86_64, host
from argosy_services.settings import GenerationSettings

CONFIG = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=128,
    intermediate_size=192,
    heads=2,
    kv_heads=1,
    head_dim=64,
    norm_eps=1e-5,
    max_positions=64,
    layer_kinds=(LayerKind(RopeConfig("default", 10_000.0)),),
    tied_embeddings=True,
    eos_token_ids=frozenset(),
    attention_scale=64**-0.5,
)
NATIVE = pytest.mark.skipif(not is_supported(), reason="the kernels are for Linux on x86-64")
REDUCED = pytest.mark.skipif(not host().reduced, reason="this processor lacks AVX2 and FMA")


def chosen(config: DecoderConfig = CONFIG, **settings: object) -> str | None:
    return runners.native_format(config, GenerationSettings(**settings))  # type: ignore[arg-type]


@NATIVE
def test_float32_runs_on_every_processor() -> None:
    assert chosen(dtype="float32") == "float32"


@NATIVE
@REDUCED
def test_auto_takes_the_fastest_and_a_named_type_is_exact() -> None:
    assert chosen() == "int8"
    assert chosen(quantization="int8", dtype="bfloat16") == "int8"
    assert chosen(quantization="int4") == "int4"
    assert chosen(dtype="bfloat16") == "bfloat16"
    assert chosen(quantization="none") == str(compute_dtype("auto")).removeprefix("torch.")


@NATIVE
def test_without_the_instructions_auto_takes_float32_and_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # An older processor is pretended; nothing is computed.
    monkeypatch.setattr(processor, "host", lambda: X86_64)
    for multiplies_bfloat16 in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, multiplies_bfloat16, lambda: False)
    assert chosen() == "float32"
    assert chosen(dtype="bfloat16") is None
    for quantized in runners.QUANTIZED:
        with pytest.raises(UnsupportedModelError, match=f"{quantized} needs the native kernels.*AVX2"):
            chosen(quantization=quantized)


@pytest.mark.parametrize(
    ("config", "settings", "reason"),
    [
        (CONFIG, {"kernels": "torch"}, "generation.kernels is torch"),
        (CONFIG, {"device": "cuda"}, "the device is cuda"),
        (CONFIG, {"block_tokens": 8}, "block_tokens 8"),
        (replace(CONFIG, final_softcap=30.0), {}, "computes more"),
    ],
)
def test_what_the_kernels_do_not_compute_goes_to_torch(
    config: DecoderConfig, settings: dict[str, object], reason: str
) -> None:
    assert chosen(config, **settings) is None
    for quantized in runners.QUANTIZED:
        with pytest.raises(UnsupportedModelError, match=reason if is_supported() else "."):
            chosen(config, quantization=quantized, **settings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, r"fp8 needs a CUDA device of compute capability 8\.9 or higher, generation\.device is cpu"),
        ({"kernels": "torch"}, "generation.device is cpu"),
    ],
)
def test_fp8_is_refused_where_it_is_not_computed(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        runners.runs_on_gpu(GenerationSettings(quantization="fp8", **settings))  # type: ignore[arg-type]


def test_kernels_for_a_gpu_are_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runners.runs_on_gpu(GenerationSettings())
    assert gpu.obstacle(torch.device("cpu")) == "the device is cpu"
    # What a machine has is pretended; no device is touched.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not runners.runs_on_gpu(GenerationSettings(device="cuda"))
    assert "triton is not installed" in str(gpu.obstacle(torch.device("cuda")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert runners.runs_on_gpu(GenerationSettings(device="cuda"))
    assert not runners.runs_on_gpu(GenerationSettings(device="cuda", kernels="torch"))
    assert not runners.runs_on_gpu(GenerationSettings(device="cuda", quantization="int8")), "and then it is refused"
    assert runners.runs_on_gpu(GenerationSettings(device="cuda", quantization="fp8"))
    with pytest.raises(UnsupportedModelError, match=r"needs the kernels for a GPU, but generation\.kernels is torch"):
        runners.runs_on_gpu(GenerationSettings(device="cuda", quantization="fp8", kernels="torch"))
