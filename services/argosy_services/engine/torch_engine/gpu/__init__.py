"""Steps on an NVIDIA GPU: Triton kernels, decoding in CUDA graphs, FP8 weights (docs/gpu.md)."""

from __future__ import annotations

import importlib.util

import torch


def obstacle(device: torch.device) -> str | None:
    """Why this package does not compute on a device; None if it does."""
    if device.type != "cuda":
        return f"the device is {device}"
    if torch.version.hip is not None:
        return "this build of torch is for AMD GPUs"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed, which torch's builds for CUDA bring along"
    return None
