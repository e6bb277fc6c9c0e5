"""Reads and validates PEFT LoRA adapters (https://arxiv.org/abs/2106.09685) from files that are not trusted."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from argosy_services.engine.torch_engine.lora import peft_config
from argosy_services.engine.torch_engine.lora.peft_config import invalid, wrong_base
from argosy_services.engine.torch_engine.lora.tensor_file import (
    StoredTensor,
    TensorFileError,
    largest_magnitude,
    load_alike,
    read_header,
)
from argosy_services.errors import ArgosyError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_MAX_CONFIG_BYTES = 1 << 20
_PREFIX = "base_model.model."
_SUFFIXES = {".lora_A.weight": "A", ".lora_B.weight": "B"}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of one module's change: W x + b(a(x)).

    `a` is [rank, in_features], `b` is [out_features, rank] with the scaling already multiplied in. Both have the type
    that the reader was asked for, on the CPU.
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """A validated adapter (`engine.base.AdapterWeights`).

    `version` is the SHA-256, in lower-case hexadecimal, over the bytes of adapter_config.json followed by those of
    adapter_model.safetensors. `rank` is the largest rank of a module, `target_modules` are the last parts of the module
    paths, sorted, `modules` holds the factors by module path.
    """

    version: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    modules: Mapping[str, LoraPair]


def read_peft_adapter(
    directory: Path, *, shapes: Mapping[str, tuple[int, int]], max_rank: int, dtype: torch.dtype, base_model: str
) -> LoraWeights:
    """Reads the adapter that PEFT's `save_pretrained` wrote into `directory`.

    `shapes` maps the path of every linear layer that can be adapted, such as "model.layers.0.self_attn.q_proj", to
    (out_features, in_features). `base_model` is the served model's name. Nothing but adapter_config.json and
    adapter_model.safetensors is opened, each is read once; whoever calls has bounded their size.

    Raises ADAPTER_INVALID where the adapter cannot be served, and WRONG_BASE_MODEL where layers have other sizes than
    the served model's or the adapter names another model (`check_base_model` tells when).
    """
    config_data = _read(directory, CONFIG_FILE, limit=_MAX_CONFIG_BYTES)
    config = peft_config.read_config(config_data, paths=shapes.keys(), max_rank=max_rank)
    peft_config.check_base_model(config.base_model, base_model)
    data = _read(directory, WEIGHTS_FILE)
    # The digest takes a third of the time, and its thread needs no lock of the interpreter.
    with ThreadPoolExecutor(1, thread_name_prefix="adapter-digest") as beside:
        version = beside.submit(_version, config_data, data)
        tensors = _header(data)
        pairs = _pair(tensors)
        for path, (a, b) in pairs.items():
            _check_shapes(path, a, b, shapes, config.rank(path))
        groups = list(_alike(pairs, config.scaling))
        largest = largest_magnitude(tensors.values(), data) * max(1.0, *(abs(scaling) for scaling, _ in groups))
    # The factors are scaled where they lie in the file's bytes, of which the digest is taken by now.
    modules: dict[str, LoraPair] = {}
    for scaling, paths in groups:
        down, up = _load(paths, pairs, data, scaling, dtype)
        if largest > torch.finfo(dtype).max / 2:
            _check_finite("A", down, paths)
            _check_finite("B", up, paths)
        modules |= {path: LoraPair(a, b) for path, a, b in zip(paths, down, up, strict=True)}
    return LoraWeights(
        version=version.result(),
        rank=max(pair.a.shape[0] for pair in modules.values()),
        target_modules=tuple(sorted({path.rpartition(".")[2] for path in modules})),
        size_bytes=sum(pair.a.nbytes + pair.b.nbytes for pair in modules.values()),
        modules=modules,
    )


def _version(*parts: bytearray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _header(data: bytearray) -> Mapping[str, StoredTensor]:
    try:
        return read_header(data)
    except TensorFileError as error:
        raise invalid(f"{WEIGHTS_FILE} is damaged: {error}") from error


def _read(directory: Path, name: str, *, limit: int | None = None) -> bytearray:
    try:
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _missing(directory, name) from error
    except OSError as error:
        raise invalid(f"{name} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise invalid(f"{name} is not a regular file")
        if limit is not None and status.st_size > limit:
            raise invalid(f"{name} has {status.st_size} bytes, at most {limit} are read")
        return _read_all(descriptor, name, status.st_size)
    finally:
        os.close(descriptor)


def _read_all(descriptor: int, name: str, size: int) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size and (count := os.readv(descriptor, [view[filled:]])):
        filled += count
    if filled != size:
        raise invalid(f"{name} became shorter while it was read")
    return data


def _missing(directory: Path, name: str) -> ArgosyError:
    pickle = next((pickle for pickle in _PICKLES if (directory / pickle).exists()), None)
    if name == WEIGHTS_FILE and pickle:
        return invalid(
            f"{pickle} is a pickle, which can run code and is never opened; save the adapter as {WEIGHTS_FILE} "
            "(save_pretrained with safe_serialization, the default of PEFT)"
        )
    return invalid(f"{name} is missing; an adapter is the two files {CONFIG_FILE} and {WEIGHTS_FILE}")


def _pair(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """The tensors by module path, sorted, each path with A and B."""
    factors: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        path, factor = _split(name)
        if not tensor.floating:
            raise invalid(f"tensor {name[:200]} has type {tensor.dtype[:20]}; F64, F32, F16 and BF16 are served")
        factors.setdefault(path, {})[factor] = tensor
    if not factors:
        raise invalid(f"{WEIGHTS_FILE} holds no tensors")
    for path, found in factors.items():
        if missing := {"A", "B"} - found.keys():
            raise invalid(f"layer {path[:200]} lacks lora_{missing.pop()}.weight")
    return {path: (factors[path]["A"], factors[path]["B"]) for path in sorted(factors)}


def _split(name: str) -> tuple[str, str]:
    for suffix, factor in _SUFFIXES.items():
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return name[len(_PREFIX) : -len(suffix)], factor
    if "lora_embedding" in name:
        raise invalid(f"tensor {name[:200]} adapts an embedding, which cannot be served; leave embeddings out")
    if "lora_magnitude_vector" in name:
        raise invalid(f"tensor {name[:200]} belongs to DoRA, which cannot be served; train without DoRA")
    raise invalid(
        f"tensor {name[:200]} is none of a LoRA adapter; names have the form {_PREFIX}<module path>.lora_A.weight"
    )


def _check_shapes(
    path: str, a: StoredTensor, b: StoredTensor, shapes: Mapping[str, tuple[int, int]], rank: int
) -> None:
    if path not in shapes:
        leaves = ", ".join(sorted({known.rpartition(".")[2] for known in shapes}))
        raise invalid(f"the model has no layer {path[:200]} that can be adapted; its layers with adapters: {leaves}")
    out_features, in_features = shapes[path]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise invalid(
            f"layer {path} has the wrong shape: by the configuration A is [{rank}, {in_features}] "
            f"and B [{out_features}, {rank}], given: A {list(a.shape)}, B {list(b.shape)}"
        )
    given = (b.shape[0], a.shape[1])
    if given != (out_features, in_features):
        raise wrong_base(
            f"layer {path} of the served model is {out_features} x {in_features} (out x in), the adapter was trained "
            f"for {given[0]} x {given[1]}; load it where its own base model is served",
            expected=f"{path} {out_features}x{in_features}",
            value=f"{given[0]}x{given[1]}",
        )


def _alike(
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]], scaling: Callable[[str], float]
) -> Iterable[tuple[float, list[str]]]:
    """The modules in groups with one scaling and last part of the path whose factors have the same types and shapes: a
    few large operations take a fraction of the time of many small ones, above all beside an engine at work, for whose
    threads each of them waits. In a file those of one kind lie at equal distances.
    """
    groups: dict[tuple[object, ...], tuple[float, list[str]]] = {}
    for path, (a, b) in pairs.items():
        factor = scaling(path)
        kind = factor, path.rpartition(".")[2], a.dtype, a.shape, b.dtype, b.shape
        groups.setdefault(kind, (factor, []))[1].append(path)
    return groups.values()


def _load(
    paths: Items[str],
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]],
    data: bytearray,
    scaling: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of modules that are alike, `[modules, rank, in_features]` and `[modules, out_features, rank]`."""
    down, up = (load_alike([pairs[path][factor] for path in paths], data) for factor in (0, 1))
    # Rounded once, to what is served.
    return down.to(dtype), up.to(torch.promote_types(up.dtype, dtype)).mul_(scaling).to(dtype)


def _check_finite(name: str, factors: torch.Tensor, paths: Items[str]) -> None:
    for path, factor in zip(paths, factors, strict=True):
        if not torch.isfinite(factor).all():
            raise invalid(
                f"layer {path}: lora_{name} is not finite; it holds NaN or infinity, "
                f"or leaves the range of {factors.dtype} when scaled"
            )
