"""The GPU of this machine, and the ones that engines are compiled for."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from argosy_services.engine.tensorrt_llm.errors import LibraryError

# Compute capability of each GPU by the name that `argosy compile --gpu` takes.
GPUS: Mapping[str, str] = {
    "a100": "sm_80",
    "a10": "sm_86",
    "l4": "sm_89",
    "l40s": "sm_89",
    "h100": "sm_90",
    "h200": "sm_90",
    "b200": "sm_100",
}
# The first architecture that multiplies FP8.
_FP8_FROM = 89


def architecture() -> str:
    """Of the GPU here, as "sm_90". Raises LibraryError where there is none."""
    if not torch.cuda.is_available():
        raise LibraryError("no NVIDIA GPU is visible; TensorRT-LLM needs one to compile and to serve")
    major, minor = torch.cuda.get_device_capability(0)
    return f"sm_{major}{minor}"


def has_fp8(gpu: str) -> bool:
    """Whether an architecture such as "sm_90" computes in FP8."""
    return int(gpu.removeprefix("sm_")) >= _FP8_FROM
