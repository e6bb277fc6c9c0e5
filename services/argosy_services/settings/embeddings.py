"""The embedding model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from argosy_services.settings.section import LIVE, Section


class EmbeddingSettings(Section):
    """The embedding model."""

    model: str = Field(default="all-minilm-l6-v2", description="Name in the model store, or a source URI.")
    dtype: Literal["auto", "float32", "bfloat16", "int16"] = Field(
        default="auto",
        description="Type of weights and products. auto takes bfloat16, whose vectors have a cosine of at least 0.999 "
        "to those of float32, where the processor computes with it natively; elsewhere int16, with one of at least "
        "0.9999, where it has AVX2.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Batches at once, each on a core; 0 takes all cores.")
    max_batch_tokens: int = Field(default=1_024, ge=16, description="Most tokens in one batch.", json_schema_extra=LIVE)
    max_adapters: int = Field(
        default=8, ge=1, le=256, description="Adapters that are ready at once; each takes up to a copy of the model."
    )
    max_adapter_rank: int = Field(default=64, ge=1, le=512, description="Largest rank of an adapter.")
    adapter_memory_bytes: int = Field(
        default=256 << 20,
        ge=0,
        description="Most bytes of adapters kept in memory beside those that are ready.",
    )
    max_waiting_texts: int = Field(
        default=16_384, ge=1, description="Most texts that wait; more are refused.", json_schema_extra=LIVE
    )
