"""In which type a model is computed."""

from __future__ import annotations

import torch

_CPU = torch.device("cpu")


def compute_dtype(wanted: str, device: torch.device = _CPU) -> torch.dtype:
    """The type of weights and products: what is asked for, or for "auto" the narrowest that the device multiplies
    natively.
    """
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without these instructions bfloat16 products are emulated, some eight times slower than float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
