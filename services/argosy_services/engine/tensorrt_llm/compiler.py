"""Compiles checkpoints into engines: once for each content, safe to interrupt and to run in several processes at once.

    <root>/<model>/<digest>/        an engine; argosy-engine.json, written last, says what it consists of
    <root>/.staging/<digest>/       what a compilation has so far
    <root>/.locks/<digest>.lock     held by the one process that compiles it

An engine appears by one rename. Of an interrupted compilation, what the library has saved is taken up again; before
that there is nothing to take up, because the library builds an engine in one go.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import structlog
from filelock import FileLock, Timeout

from argosy_services.engine.tensorrt_llm import device
from argosy_services.engine.tensorrt_llm.checkpoint import LORA_MODULES, Checkpoint, read_checkpoint
from argosy_services.engine.tensorrt_llm.errors import BuildRequestError, DamagedEngineError
from argosy_services.engine.tensorrt_llm.library import Library
from argosy_services.engine.tensorrt_llm.manifest import (
    Build,
    EngineKey,
    EngineManifest,
    check_files,
    describe_engine,
    engine_files,
    read_engine_manifest,
    write_engine_manifest,
)
from argosy_services.engine.tensorrt_llm.options import lora_config
from argosy_services.models.progress import Meter, Stage
from argosy_services.models.staging import Staging, storage_errors, sync_directory
from argosy_services.models.types import LocalModel

log = structlog.get_logger("argosy.engine")

_SAVED = "saved"


class Step(enum.StrEnum):
    """What a compilation is busy with, in this order."""

    WAITING = "waiting for another process"
    BUILDING = "building the engine"
    SAVING = "saving"
    CHECKING = "checking"


class Report(Protocol):
    """Is told about each step. `done` and `total` are bytes; both are 0 where the step cannot tell."""

    def __call__(self, step: Step, done: int, total: int) -> None: ...


def build_for(
    model: LocalModel,
    gpu: str,
    *,
    quantization: str,
    max_batch_size: int,
    max_input_len: int,
    max_seq_len: int,
    max_num_tokens: int,
    tensor_parallel_size: int,
    lora_max_rank: int,
    logprobs: bool,
) -> Build:
    """Checks what is asked for. `max_seq_len` 0 takes the model's own, `max_input_len` 0 all but one of those.

    Raises BuildRequestError where the options contradict each other, the model or the GPU named `gpu`.
    """
    checkpoint = read_checkpoint(model.path)
    max_seq_len = max_seq_len or checkpoint.max_positions
    max_input_len = max_input_len or max_seq_len - 1
    if max_seq_len > checkpoint.max_positions:
        raise BuildRequestError(f"--max-seq-len {max_seq_len} is more than the model's {checkpoint.max_positions}")
    if max_input_len >= max_seq_len:
        raise BuildRequestError(f"--max-input-len {max_input_len} leaves no room below --max-seq-len {max_seq_len}")
    if max_input_len > max_num_tokens:
        raise BuildRequestError(
            f"--max-num-tokens {max_num_tokens} is less than the longest prompt, {max_input_len}: raise it, or lower "
            "--max-input-len"
        )
    if quantization == "fp8" and not device.has_fp8(device.GPUS[gpu]):
        raise BuildRequestError(f"{gpu} does not compute in FP8; it takes an l4, l40s, h100 or a later one")
    _check_lora(checkpoint, lora_max_rank, tensor_parallel_size)
    return Build(
        quantization=quantization,
        max_batch_size=max_batch_size,
        max_input_len=max_input_len,
        max_seq_len=max_seq_len,
        max_num_tokens=max_num_tokens,
        tensor_parallel_size=tensor_parallel_size,
        lora_max_rank=lora_max_rank,
        lora_modules=tuple(sorted(LORA_MODULES.values())) if lora_max_rank else (),
        logprobs=logprobs,
    )


def compile_engine(
    library: Library, model: LocalModel, gpu: str, build: Build, *, root: Path, report: Report
) -> tuple[Path, EngineManifest]:
    """Compiles, unless the same has been compiled already, and gives the engine's directory. Blocks for minutes.

    Raises BuildRequestError where the GPU here is not of the kind named `gpu`, LibraryError where there is none,
    StorageError, and whatever the library raises.
    """
    key = EngineKey(model.name, model.fingerprint, device.GPUS[gpu], library.version, build)
    final = root / model.name / key.digest[:16]
    present = _intact(final)
    if present is not None:
        return final, present
    here = device.architecture()
    if here != key.architecture:
        raise BuildRequestError(
            f"--gpu {gpu} is {key.architecture} and this machine has {here}; compile on the GPU that will run it"
        )
    with storage_errors(root), _lock(root, key, report):
        present = _intact(final)
        if present is None:
            staging = Staging(root / ".staging" / key.digest[:16])
            present = _compile(library, model, key, staging, final=final, report=report)
    return final, present


def _compile(
    library: Library, model: LocalModel, key: EngineKey, staging: Staging, *, final: Path, report: Report
) -> EngineManifest:
    staging.sweep()
    kept = staging.downloads
    saved, mark = kept / "engine", kept / _SAVED
    if not mark.exists():
        if saved.exists():
            staging.discard_downloads()
            kept = staging.downloads
        staging.require(2 * model.size_bytes, f"compiling {model.name}")
        arguments = build_arguments(library, model, key.build, staging.fresh("workspace"))
        _build(library, arguments, saved, report)
        # After it: that this file is there says that all of the engine is.
        mark.touch()
    total = sum((saved / name).stat().st_size for name in engine_files(saved))
    meter = Meter(lambda stage, done, total: report(Step.CHECKING, done, total), Stage.CHECKING, total)
    manifest = describe_engine(saved, key, meter)
    write_engine_manifest(saved, manifest)
    for folder in (saved, *(path for path in saved.rglob("*") if path.is_dir())):
        sync_directory(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        final.rename(staging.fresh("damaged") / final.name)
    saved.rename(final)
    sync_directory(final.parent)
    staging.remove()
    return manifest


def _build(library: Library, arguments: dict[str, Any], saved: Path, report: Report) -> None:
    report(Step.BUILDING, 0, 0)
    # The constructor compiles and then loads what it has compiled; nothing does only the first.
    llm = library.compiled_llm(**arguments)
    try:
        report(Step.SAVING, 0, 0)
        llm.save(str(saved))
    finally:
        llm.shutdown()


def build_arguments(library: Library, model: LocalModel, build: Build, workspace: Path) -> dict[str, Any]:
    """The arguments of the library's LLM that compile an engine."""
    lora = lora_config(library, max_rank=build.lora_max_rank, max_adapters=None) if build.lora_max_rank else None
    limits: dict[str, Any] = {
        # Its default is 1024, whatever the sequence length.
        "max_input_len": build.max_input_len,
        "max_seq_len": build.max_seq_len,
        "max_batch_size": build.max_batch_size,
        "max_num_tokens": build.max_num_tokens,
        "gather_context_logits": build.logprobs,
        "gather_generation_logits": build.logprobs,
    }
    if lora is not None:
        # Here too: of the LLM's own LoRA configuration only the rank reaches the build.
        limits["lora_config"] = lora
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "tokenizer": str(model.path),
        "tensor_parallel_size": build.tensor_parallel_size,
        "build_config": library.build_config(**limits),
        "workspace": str(workspace),
    }
    if lora is not None:
        arguments |= {"enable_lora": True, "lora_config": lora}
    if build.quantization == "fp8":
        # The cache's type cannot be chosen when a compiled engine is loaded, only here.
        arguments["quant_config"] = library.quant_config(
            quant_algo=library.quant_algo.FP8, kv_cache_quant_algo=library.quant_algo.FP8
        )
    return arguments


def _intact(directory: Path) -> EngineManifest | None:
    try:
        manifest = read_engine_manifest(directory)
        if manifest is not None:
            check_files(directory, manifest)
    except DamagedEngineError as error:
        log.warning("engine_damaged", directory=str(directory), error=str(error))
        return None
    return manifest


def _check_lora(checkpoint: Checkpoint, rank: int, gpus: int) -> None:
    if rank and not checkpoint.adaptable:
        raise BuildRequestError(f"no layer of a {checkpoint.architecture} can be adapted; use --lora-max-rank 0")
    for path, sizes in checkpoint.adaptable.items() if rank else ():
        if any(size % gpus for size in sizes):
            raise BuildRequestError(f"layer {path} cannot be shared by {gpus} GPUs with adapters")


@contextmanager
def _lock(root: Path, key: EngineKey, report: Report) -> Iterator[None]:
    locks = root / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{key.digest[:16]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(Step.WAITING, 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
