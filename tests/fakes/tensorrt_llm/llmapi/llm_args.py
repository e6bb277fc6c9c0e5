from __future__ import annotations

import enum

from pydantic import BaseModel, ConfigDict


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KvCacheConfig(_Strict):
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    dtype: str = "auto"
    tokens_per_block: int = 32


class QuantAlgo(enum.StrEnum):
    FP8 = "FP8"
    NVFP4 = "NVFP4"
    W4A16_AWQ = "W4A16_AWQ"
    INT8 = "INT8"


class QuantConfig(_Strict):
    quant_algo: QuantAlgo | None = None
    kv_cache_quant_algo: QuantAlgo | None = None


COMMON = {
    "pipeline_parallel_size", "enable_lora", "lora_config", "kv_cache_config", "enable_chunked_prefill",
    "guided_decoding_backend", "max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_num_tokens",
    "gather_generation_logits", "peft_cache_config", "scheduler_config", "iter_stats_max_iterations",
}  # fmt: skip
PYTORCH = {"enable_iter_perf_stats", "enable_iter_req_stats", "sampler_type", "stream_interval", "cuda_graph_config"}
COMPILED = {"build_config", "quant_config", "calib_config", "workspace", "enable_build_cache", "fast_build"}
