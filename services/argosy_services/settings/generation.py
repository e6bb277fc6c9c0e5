"""The generation model and its engines."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from argosy_services.settings.section import LIVE, Section


class TensorRtLlmSettings(Section):
    """TensorRT-LLM on NVIDIA GPUs; used where generation.engine is tensorrt_llm. See docs/tensorrt-llm.md."""

    mode: Literal["compiled", "pytorch"] = Field(
        default="pytorch",
        description="compiled runs an engine that `argosy compile` made, pytorch the checkpoint itself.",
    )
    engine_dir: Path | None = Field(
        default=None,
        description="A compiled engine, or a directory with several below it, of which the one that fits is taken.",
    )
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="GPUs that share the model.")
    quantization: Literal["none", "fp8"] = Field(
        default="none", description="What the compiled engine must have been quantized to."
    )
    kv_cache_fraction: float = Field(
        default=0.85, gt=0, lt=1, description="Part of the GPU's free memory that the key-value cache takes."
    )
    max_batch_tokens: int = Field(default=8192, ge=64, description="Most tokens that one step computes.")
    sampler: Literal["auto", "TorchSampler", "TRTLLMSampler"] = Field(
        default="auto", description="The library's sampler in pytorch mode."
    )
    max_adapter_versions: int = Field(
        default=256, ge=1, description="Most different adapters until a restart: the library keeps the memory of each."
    )
    max_restarts: int = Field(default=3, ge=0, le=100, description="Most attempts to start the library again.")
    restart_delay_s: float = Field(
        default=1.0, ge=0, le=60, description="Before the first such attempt; each further one waits twice as long."
    )


class GenerationSettings(Section):
    """The generation model and its engine."""

    model: str = Field(default="smollm2-135m-instruct", description="Name in the model store, or a source URI.")
    engine: Literal["torch", "tensorrt_llm"] = Field(
        default="torch", description="What runs the model; tensorrt_llm needs the extra `trtllm` and an NVIDIA GPU."
    )
    tensorrt_llm: TensorRtLlmSettings = TensorRtLlmSettings()
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Type of weights and cache; auto takes bfloat16 where the device computes with it natively.",
    )
    quantization: Literal["auto", "none", "int8", "int4", "fp8"] = Field(
        default="auto",
        description="Format of the torch engine's weights; auto takes int8 where the processor computes with it and "
        "dtype is auto, and costs less than 1 % of perplexity; int4 halves the memory and costs more; fp8 is for "
        "NVIDIA GPUs from Ada and Hopper on.",
    )
    kernels: Literal["auto", "torch"] = Field(
        default="auto",
        description="auto runs native kernels where the model and the processor fit them, and Triton's on a GPU; torch "
        "its operators only.",
    )
    device: str = Field(default="cpu", description="Torch device.")
    threads: int = Field(default=0, ge=0, le=1024, description="Threads of a step; 0 takes one per core.")
    kv_cache_tokens: int = Field(
        default=65_536, ge=256, description="Tokens that the key-value cache holds, over all sequences."
    )
    block_tokens: int = Field(default=16, ge=1, le=256, description="Tokens in one block of the cache.")
    prefix_cache: bool = Field(
        default=True,
        description="Share computed beginnings of prompts, among the calls of one API key.",
    )
    max_batch: int = Field(
        default=64, ge=1, le=4096, description="Most sequences in one step, each with a token at least."
    )
    max_step_tokens: int = Field(default=512, ge=16, description="Most tokens that one step computes.")
    max_waiting: int = Field(
        default=256, ge=0, description="Most sequences that wait; one more is refused.", json_schema_extra=LIVE
    )
    max_waiting_tokens: int = Field(
        default=131_072,
        ge=0,
        description="Most prompt tokens that wait; a prompt that exceeds it is refused, unless it is the only one.",
        json_schema_extra=LIVE,
    )
    explain_requests: int = Field(
        default=1_000,
        ge=0,
        le=1_000_000,
        description="Finished requests that Explain can tell of; the latest are kept.",
    )
    stream_interval_ms: float = Field(
        default=40.0,
        ge=0,
        le=1000,
        description="Tokens of a stream that come within this time travel in one message, the first and last at once; "
        "0 sends each as it comes. A message costs more than the token in it.",
    )
    stream_messages_per_second: int = Field(
        default=0,
        ge=0,
        description="Most messages that all streams of a server send in a second; with more streams the interval "
        "grows, up to 250 ms. 0 takes 80 for each core and at most 2,000.",
    )
    max_context_tokens: int = Field(default=0, ge=0, description="Longest sequence; 0 takes the model's own limit.")
    speculation: Literal["auto", "off", "prompt_lookup", "draft"] = Field(
        default="auto",
        description="Guess tokens ahead of the model, which changes no answer: auto where it pays; prompt_lookup from "
        "what a sequence repeats, or draft by draft_model, at any cost; off never.",
    )
    draft_model: str = Field(
        default="", description="A smaller model with the same tokenizer that guesses tokens; a name or a source URI."
    )
    max_adapters: int = Field(default=16, ge=0, le=1024, description="Most adapters in the engine at once.")
    adapter_memory_bytes: int = Field(
        default=1 << 30, ge=0, description="Most bytes of adapters that are kept in memory beside those in the engine."
    )
    max_adapter_rank: int = Field(default=64, ge=1, le=512, description="Largest LoRA rank that is accepted.")

    @model_validator(mode="after")
    def _refuse_what_cannot_load(self) -> GenerationSettings:
        library = self.tensorrt_llm
        if self.speculation == "draft" and not self.draft_model:
            raise ValueError("speculation is draft and draft_model is not set: name a model with the same tokenizer")
        if self.engine == "tensorrt_llm" and (self.draft_model or self.speculation in ("draft", "prompt_lookup")):
            raise ValueError("draft_model and speculation are for the engine torch: leave them at their defaults")
        if self.engine == "tensorrt_llm" and library.mode == "compiled" and library.engine_dir is None:
            raise ValueError(
                "tensorrt_llm.engine_dir is not set: name what `argosy compile` printed, or use mode pytorch"
            )
        if self.engine == "tensorrt_llm" and library.mode == "pytorch" and library.quantization != "none":
            raise ValueError(
                "tensorrt_llm.quantization is for mode compiled; in mode pytorch serve a checkpoint that is quantized"
            )
        return self
