from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from tensorrt_llm.lora_helper import LoraConfig


class BuildConfig(BaseModel):
    max_input_len: int = 1024
    max_seq_len: int | None = None
    opt_batch_size: int = 8
    max_batch_size: int = 2048
    max_beam_width: int = 1
    max_num_tokens: int = 8192
    gather_context_logits: bool = False
    gather_generation_logits: bool = False
    lora_config: Any = Field(default_factory=LoraConfig)
    lora_plugin: str | None = None
