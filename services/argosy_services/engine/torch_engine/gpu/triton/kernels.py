"""All of the kernels as one thing."""

from __future__ import annotations

from argosy_services.engine.torch_engine.gpu.triton.low_rank import add_low_rank, add_low_rank_pieces
from argosy_services.engine.torch_engine.gpu.triton.paged import attend_decodes, attend_prompts, tasks_of
from argosy_services.engine.torch_engine.gpu.triton.rows import add_norm, advance, gated, norm, place


class TritonKernels:
    """See `kernels.Kernels`. Compiled for a shape when it first comes, and kept by Triton on disk."""

    norm = staticmethod(norm)
    add_norm = staticmethod(add_norm)
    place = staticmethod(place)
    gated = staticmethod(gated)
    attend_decodes = staticmethod(attend_decodes)
    attend_prompts = staticmethod(attend_prompts)
    tasks_of = staticmethod(tasks_of)
    add_low_rank = staticmethod(add_low_rank)
    add_low_rank_pieces = staticmethod(add_low_rank_pieces)
    advance = staticmethod(advance)
