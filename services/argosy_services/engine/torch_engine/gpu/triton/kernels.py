"""All of the kernels as one thing."""

from __future__ import annotations

from argosy_services.engine.torch_engine.gpu.triton.low_rank import add_low_rank
from argosy_services.engine.torch_engine.gpu.triton.paged import attend_decodes, attend_prompts, tasks_of
from argosy_services.engine.torch_engine.gpu.triton.rows import gated, norm, rotate


class TritonKernels:
    """See `kernels.Kernels`. Compiled for a shape when it first comes, and kept by Triton on disk."""

    norm = staticmethod(norm)
    rotate = staticmethod(rotate)
    gated = staticmethod(gated)
    attend_decodes = staticmethod(attend_decodes)
    attend_prompts = staticmethod(attend_prompts)
    tasks_of = staticmethod(tasks_of)
    add_low_rank = staticmethod(add_low_rank)
