"""The arguments with which an LLM of the library is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argosy_services.engine.base import EngineInfo
from argosy_services.engine.tensorrt_llm.checkpoint import LORA_MODULES
from argosy_services.engine.tensorrt_llm.library import Library
from argosy_services.settings import GenerationSettings


def make_llm(
    library: Library,
    settings: GenerationSettings,
    info: EngineInfo,
    model: Path,
    *,
    engine: Path | None,
    logprobs: bool,
) -> Any:
    """Loads an LLM: the compiled `engine` where there is one, else the checkpoint. Blocks for minutes.

    `logprobs` has a compiled engine keep its logits, at the cost of memory. Raises what the library raises.
    """
    if engine is None:
        return library.pytorch_llm(model=str(model), **_common(library, settings, model), **_pytorch(settings, info))
    # Its limits are the engine's own. Chunked prefill stays off: it needs an engine that was built for it.
    return library.compiled_llm(
        model=str(engine),
        **_common(library, settings, model),
        enable_lora=settings.max_adapters > 0,
        gather_generation_logits=logprobs,
    )


def lora_config(library: Library, *, max_rank: int, max_adapters: int | None) -> Any:
    """For all layers that our adapters may change. Without names the library would take all it has."""
    return library.lora_config(
        lora_target_modules=sorted(LORA_MODULES.values()),
        max_lora_rank=max_rank,
        max_loras=max_adapters,
        max_cpu_loras=max_adapters,
    )


def _common(library: Library, settings: GenerationSettings, model: Path) -> dict[str, Any]:
    own = settings.tensorrt_llm
    cache: dict[str, Any] = {
        "free_gpu_memory_fraction": own.kv_cache_fraction,
        "enable_block_reuse": settings.prefix_cache,
    }
    arguments: dict[str, Any] = {
        # Named, for it would be looked for beside the engine or in an adapter's directory.
        "tokenizer": str(model),
        "tensor_parallel_size": own.tensor_parallel_size,
        "max_batch_size": settings.max_batch,
        "kv_cache_config": library.kv_cache_config(**cache),
        "guided_decoding_backend": "xgrammar",
    }
    if settings.max_adapters > 0:
        arguments["lora_config"] = lora_config(
            library, max_rank=settings.max_adapter_rank, max_adapters=settings.max_adapters
        )
    return arguments


def _pytorch(settings: GenerationSettings, info: EngineInfo) -> dict[str, Any]:
    own = settings.tensorrt_llm
    return {
        "dtype": settings.dtype,
        "max_seq_len": info.max_context_tokens,
        "max_num_tokens": own.max_batch_tokens,
        # Or prompts longer than a step would be refused.
        "enable_chunked_prefill": True,
        "enable_iter_perf_stats": True,
        "sampler_type": own.sampler,
    }
