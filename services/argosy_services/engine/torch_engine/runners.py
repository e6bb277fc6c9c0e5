"""Chooses how a model's steps are computed: by native kernels on a CPU, by Triton's on a GPU, or by torch operators
anywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog
import torch

from argosy_services.engine.base import AdapterWeights
from argosy_services.engine.dtypes import compute_dtype
from argosy_services.engine.torch_engine import gpu, native
from argosy_services.engine.torch_engine.config import DecoderConfig, UnsupportedModelError
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.lora.reader import LoraWeights
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.model_runner import ModelRunner
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LinearOf, load_weights
from argosy_services.engine.torch_engine.step import RowSpan, Work
from argosy_services.settings import GenerationSettings

log = structlog.get_logger("argosy.engine")

QUANTIZED = ("int8", "int4")
"""Formats of weights that only the native kernels have."""


class Runner(Protocol):
    """Computes scheduled work. Lives on the engine's thread."""

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        """Computes the work, writes its keys and values, and gives the logits float32 `[rows, vocab]` that
        `step.wanted_rows` names. They are the caller's until the next call."""
        ...

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest token, int64 `[rows]`, of logits `[rows, vocab]` that are as `run` gave them; in the memory of
        whichever device."""
        ...

    def settle(self) -> bool:
        """Spends a few milliseconds, in which nothing is to be computed, on what makes later steps faster. Whether more
        of it is left."""
        ...

    def close(self) -> None:
        """Gives back what the runner holds beside memory."""
        ...


class Adapters(Protocol):
    """The adapters that are in an engine, by key. `prepare` is for any thread, the rest for the engine's."""

    prepared: type
    """What `prepare` makes."""

    def __contains__(self, key: str) -> bool: ...
    def __len__(self) -> int: ...

    def prepare(self, weights: LoraWeights) -> AdapterWeights:
        """A validated adapter in the form that `put` takes."""
        ...

    def put(self, key: str, adapter: Any) -> None:
        """Takes a slot. Raises ADAPTER_SLOTS_FULL."""
        ...

    def drop(self, key: str) -> None:
        """Frees a slot; a key that has none is ignored."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run. `weights` says in which type its products are computed, `dtype` is the type that
    its adapters have. `spare_tokens` is the room that its sequences should have beyond what is to be computed."""

    runner: Runner
    adapters: Adapters
    weights: str
    dtype: torch.dtype
    parameter_count: int
    spare_tokens: int = 0


def load_runner(
    directory: Path, config: DecoderConfig, settings: GenerationSettings, positions: int, *, ahead: bool = True
) -> Loaded:
    """Reads a checkpoint for a device and `positions`. A GPU may run `ahead` of the scheduler, which pays where
    the next step is likely to be the same sequences'. Raises UnsupportedModelError."""
    device = torch.device(settings.device)
    if runs_on_gpu(settings):
        dtype = compute_dtype(settings.dtype, device)
        weights = load_weights(directory, config, dtype, device, gpu_linear(settings, dtype))
        return load_gpu(config, weights, settings, positions, ahead=ahead)
    form = native_format(config, settings)
    dtype = compute_dtype(settings.dtype, device) if form is None else _adapter_dtype(form)
    weights = load_weights(directory, config, dtype, device)
    count = _count(weights)
    slots = settings.kv_cache_tokens // settings.block_tokens * settings.block_tokens
    if form is not None:
        from argosy_services.engine.torch_engine.native.adapters import NativeAdapters
        from argosy_services.engine.torch_engine.native.decoder import NativeDecoder
        from argosy_services.engine.torch_engine.native.formats import format_of
        from argosy_services.engine.torch_engine.native.processor import host
        from argosy_services.engine.torch_engine.native.runner import NativeRunner

        native_form = format_of(form, host())
        native_adapters = NativeAdapters(settings.max_adapters, list(adaptable(config)), native_form)
        decoder = NativeDecoder(
            config,
            weights,
            native_adapters,
            form=native_form,
            max_positions=positions,
            max_rows=settings.max_step_tokens,
            slots=slots,
            threads=cores(settings),
        )
        runner = NativeRunner(decoder, settings.block_tokens, native_adapters)
        return Loaded(runner, native_adapters, form, dtype, count)
    adapters = AdapterSlots(settings.max_adapters)
    pool = KvPool(config, slots // settings.block_tokens, settings.block_tokens, dtype, device)
    return Loaded(
        ModelRunner(Decoder(config, weights, positions), pool, adapters),
        adapters,
        str(dtype).removeprefix("torch."),
        dtype,
        count,
    )


def runs_on_gpu(settings: GenerationSettings) -> bool:
    """Whether the kernels for a GPU compute the steps.

    Raises UnsupportedModelError where fp8 was asked for and they do not.
    """
    device = torch.device(settings.device)
    if settings.quantization == "fp8":
        from argosy_services.engine.torch_engine.gpu.fp8 import check_device

        check_device(device)
    reason = "generation.kernels is torch" if settings.kernels == "torch" else gpu.obstacle(device)
    if reason is not None and settings.quantization == "fp8":
        raise UnsupportedModelError(f"generation.quantization fp8 needs the kernels for a GPU, but {reason}")
    if reason is not None and device.type == "cuda":
        log.info("neither kernels nor graphs for the GPU", because=reason)
    return reason is None and settings.quantization not in QUANTIZED


def load_gpu(
    config: DecoderConfig, weights: DecoderWeights, settings: GenerationSettings, positions: int, *, ahead: bool = True
) -> Loaded:
    """Makes a model on a GPU ready to run, and captures its decode steps."""
    from argosy_services.engine.torch_engine.gpu.adapters import GpuAdapters
    from argosy_services.engine.torch_engine.gpu.decode_step import DecodeStep
    from argosy_services.engine.torch_engine.gpu.decoder import GpuDecoder
    from argosy_services.engine.torch_engine.gpu.runner import GpuRunner
    from argosy_services.engine.torch_engine.gpu.triton.kernels import TritonKernels

    dtype, device = weights.embeddings.dtype, weights.embeddings.device
    adapters = GpuAdapters(settings.max_adapters, settings.max_adapter_rank, config, dtype, device)
    # One block more than the scheduler knows of, for the padding of batches.
    blocks = settings.kv_cache_tokens // settings.block_tokens + 1
    pool = KvPool(config, blocks, settings.block_tokens, dtype, device)
    decoder = GpuDecoder(config, weights, positions, TritonKernels())
    step = DecodeStep(decoder, pool, adapters, max_rows=settings.max_batch, max_positions=positions)
    runner = GpuRunner(decoder, pool, adapters, step, ahead=ahead)
    runner.warm_up(step.scratch)
    with torch.cuda.device(device):
        step.capture(with_adapters=settings.max_adapters > 0)
    form = "fp8" if settings.quantization == "fp8" else str(dtype).removeprefix("torch.")
    return Loaded(runner, adapters, form, dtype, _count(weights), spare_tokens=int(ahead))


def gpu_linear(settings: GenerationSettings, dtype: torch.dtype) -> LinearOf:
    """How projections are kept on a GPU. Raises UnsupportedModelError."""
    if settings.quantization != "fp8":
        from argosy_services.engine.torch_engine.gpu.linear import GpuLinear

        return GpuLinear
    if dtype is not torch.bfloat16:
        raise UnsupportedModelError(
            f"generation.quantization fp8 computes beside bfloat16, generation.dtype is {settings.dtype}; use auto"
        )
    from argosy_services.engine.torch_engine.gpu.fp8 import fp8_linear

    return fp8_linear


def native_format(config: DecoderConfig, settings: GenerationSettings) -> str | None:
    """The format of weights that the native kernels take, None where torch's operators compute instead.

    Raises UnsupportedModelError where a quantization was asked for that only those kernels have.
    """
    wanted = settings.quantization
    reason = _obstacle(config, settings)
    form = "int8" if wanted == "auto" and settings.dtype == "auto" else wanted
    if reason is None and form in QUANTIZED and not _reduces():
        if wanted == "auto":
            form = "none"
        else:
            reason = "this processor lacks the AVX2 and FMA instructions"
    if reason is not None:
        if wanted in QUANTIZED:
            raise UnsupportedModelError(f"generation.quantization {wanted} needs the native kernels, but {reason}")
        log.info("torch's operators compute the steps", because=reason)
        return None
    if form in QUANTIZED:
        return form
    dtype = compute_dtype(settings.dtype)
    if dtype is torch.bfloat16:
        return "bfloat16" if _reduces() else None
    return "float32"


def cores(settings: GenerationSettings) -> int:
    """Threads of a step."""
    return settings.threads or len(os.sched_getaffinity(0))


def _count(weights: DecoderWeights) -> int:
    return sum(tensor.numel() for tensor in weights.parameters())


def _adapter_dtype(form: str) -> torch.dtype:
    return torch.float32 if form == "float32" else torch.bfloat16


def _obstacle(config: DecoderConfig, settings: GenerationSettings) -> str | None:
    """Why the native kernels do not compute a model here; None if they do."""
    if settings.kernels == "torch":
        return "generation.kernels is torch"
    if settings.device != "cpu":
        return f"the device is {settings.device}"
    if not native.is_supported():
        return "they are for Linux on x86-64"
    from argosy_services.engine.torch_engine.native.decoder import obstacle

    return obstacle(config, settings.block_tokens)


def _reduces() -> bool:
    """Whether this processor computes reduced types in the native kernels."""
    from argosy_services.engine.torch_engine.native.processor import host

    return host().reduced
