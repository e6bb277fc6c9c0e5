"""The installed library: imported only here, and compared with `contract.yaml` before anything relies on it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import yaml

from argosy_services.engine.tensorrt_llm.errors import LibraryError

Mode = Literal["compiled", "pytorch"]


@dataclass(frozen=True, slots=True)
class Library:
    """What this adapter uses of tensorrt_llm. The classes are untyped, for they cannot be imported everywhere."""

    version: str
    compiled_llm: Any
    pytorch_llm: Any
    sampling_params: Any
    guided_decoding: Any
    kv_cache_config: Any
    lora_config: Any
    lora_request: Any
    request_error: type[Exception]
    build_config: Any
    quant_config: Any
    quant_algo: Any


def load_library() -> Library:
    """Imports the library and checks it. Takes seconds; raises LibraryError."""
    contract = read_contract()
    try:
        root = importlib.import_module("tensorrt_llm")
    except ImportError as error:
        raise LibraryError(
            f"tensorrt_llm cannot be imported ({error}); install argosy[trtllm] on a machine with an NVIDIA GPU, or "
            "use the image nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
        ) from error
    version = str(getattr(root, "__version__", "unknown"))
    if version != contract["version"]:
        raise LibraryError(f"tensorrt_llm is {version}; install {contract['version']}, for which this was written")
    problems = differences(contract)
    if problems:
        raise LibraryError("tensorrt_llm is not as documented: " + "; ".join(problems))
    return Library(
        version=version,
        compiled_llm=resolve("tensorrt_llm._tensorrt_engine.LLM"),
        pytorch_llm=resolve("tensorrt_llm.LLM"),
        sampling_params=resolve("tensorrt_llm.SamplingParams"),
        guided_decoding=resolve("tensorrt_llm.llmapi.GuidedDecodingParams"),
        kv_cache_config=resolve("tensorrt_llm.llmapi.KvCacheConfig"),
        lora_config=resolve("tensorrt_llm.lora_helper.LoraConfig"),
        lora_request=resolve("tensorrt_llm.executor.request.LoRARequest"),
        request_error=resolve("tensorrt_llm.llmapi.RequestError"),
        build_config=resolve("tensorrt_llm.BuildConfig"),
        quant_config=resolve("tensorrt_llm.llmapi.QuantConfig"),
        quant_algo=resolve("tensorrt_llm.llmapi.QuantAlgo"),
    )


def read_contract() -> dict[str, Any]:
    """The content of `contract.yaml`."""
    return yaml.safe_load(
        files("argosy_services.engine.tensorrt_llm").joinpath("contract.yaml").read_text(encoding="utf-8")
    )


def differences(contract: dict[str, Any]) -> list[str]:
    """What the importable library does otherwise than the contract says; what is new there is no difference."""
    found: list[str] = []
    for name, expected in contract["signatures"].items():
        found += _compare(name, expected, _parameters)
    for name, expected in contract["fields"].items():
        found += _compare(name, expected, _fields)
    for kind in ("properties", "members"):
        for name, expected in contract[kind].items():
            found += _compare(name, dict.fromkeys(expected, "any"), lambda target: dict.fromkeys(dir(target), "any"))
    for name, base in contract["exceptions"].items():
        found += _compare(name, {base: "any"}, lambda target: {kind.__name__: "any" for kind in target.__mro__})
    return found


def resolve(name: str) -> Any:
    """The object that a dotted name stands for. Raises ImportError or AttributeError."""
    parts = name.split(".")
    target: Any = importlib.import_module(parts[0])
    for position, part in enumerate(parts[1:], 1):
        if not hasattr(target, part) and inspect.ismodule(target):
            target = importlib.import_module(".".join(parts[: position + 1]))
        else:
            target = getattr(target, part)
    return target


def _compare(name: str, expected: dict[str, Any], read: Any) -> list[str]:
    try:
        given = read(resolve(name))
    except (ImportError, AttributeError) as error:
        return [f"{name} is missing ({error})"]
    found = [f"{name} has no {key}" for key in expected if key not in given]
    found += [
        f"the default of {key} of {name} is {given[key]!r}, not {value!r}"
        for key, value in expected.items()
        if key in given and "any" not in (value, given[key]) and given[key] != value
    ]
    shared = [key for key in given if key in expected]
    # Order only counts where arguments may be given by position.
    if name.endswith(("__init__", "generate_async")) and not found and shared != list(expected):
        found.append(f"{name} takes its parameters in the order {shared}")
    return found


def _parameters(target: Any) -> dict[str, Any]:
    parameters = list(inspect.signature(target).parameters.values())
    return {
        p.name: "variadic" if p.kind is p.VAR_KEYWORD else "required" if p.default is p.empty else p.default
        for p in parameters
        if p.name != "self"
    }


def _fields(target: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(target):
        return {field.name: _default(field) for field in dataclasses.fields(target)}
    if hasattr(target, "model_fields"):
        return {
            name: "required" if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in target.model_fields.items()
        }
    return _parameters(target)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "required"
