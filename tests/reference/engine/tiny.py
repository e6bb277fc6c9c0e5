"""Small random models of every architecture that the engine serves, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from argosy_services.engine.factory import create_engine
from argosy_services.models.types import LocalModel

from .conftest import Collector, settings

VOCABULARY = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4.0,
}
GEMMA: dict[str, Any] = {"num_attention_heads": 4, "head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 24}
CAPS = {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 12.0}
GEMMA3_ROPES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# By name: the configuration class and what differs from SHAPE.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, one key-value head for each head": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama, biases and untied head": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "llama, tied head and own head size": ("LlamaConfig", {"tie_word_embeddings": True, "head_dim": 16}),
    "llama 3.1 positions": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "llama, stretched positions": ("LlamaConfig", {"rope_parameters": LINEAR_ROPE}),
    "mistral, sliding window": ("MistralConfig", {"sliding_window": 24, "head_dim": 8}),
    "mistral, full attention": ("MistralConfig", {"sliding_window": None, "head_dim": 8}),
    "qwen 2": ("Qwen2Config", {"use_sliding_window": False}),
    "qwen 2, tied head, window in the last layers": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen 2, yarn": ("Qwen2Config", {"rope_parameters": YARN_ROPE}),
    "qwen 2, yarn without rounding": (
        "Qwen2Config",
        {"rope_parameters": {**YARN_ROPE, "truncate": False, "attention_factor": 0.8}},
    ),
    "qwen 3": ("Qwen3Config", {"head_dim": 16}),
    "qwen 3, biases, window in one layer": (
        "Qwen3Config",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 24,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "smollm 3": ("SmolLM3Config", {"num_hidden_layers": 5}),
    "smollm 3, untied, biases": (
        "SmolLM3Config",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "no_rope_layers": [0, 1, 0]},
    ),
    "smollm 3, window where nothing rotates": (
        "SmolLM3Config",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 24},
    ),
    "gemma 2": ("Gemma2Config", {**GEMMA, **CAPS}),
    "gemma 2, one key-value head for each head, no caps": (
        "Gemma2Config",
        {
            **GEMMA,
            "num_key_value_heads": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
        },
    ),
    "gemma 2, untied head, full attention": (
        "Gemma2Config",
        {**GEMMA, **CAPS, "tie_word_embeddings": False, "layer_types": ["full_attention"] * 3},
    ),
    "gemma 3": ("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7}),
    "gemma 3, stretched global layers": (
        "Gemma3TextConfig",
        {**GEMMA, "sliding_window_pattern": 2, "rope_parameters": GEMMA3_ROPES},
    ),
    "gemma 3, untied, final cap": (
        "Gemma3TextConfig",
        {**GEMMA, "tie_word_embeddings": False, "final_logit_softcapping": 12.0, "sliding_window_pattern": 3},
    ),
    "gemma 3, text of a model that sees images": (
        "Gemma3Config",
        {
            "text_config": {**SHAPE, **GEMMA, "sliding_window_pattern": 2},
            "vision_config": VISION,
            "mm_tokens_per_image": 1,
            "image_token_index": 300,
            "boi_token_index": 301,
            "eoi_token_index": 302,
        },
    ),
}


def save_tiny(family: str, directory: Path, *, max_shard_size: str = "1GB") -> torch.nn.Module:
    """Saves a random model of a family into a directory; the same model each time, in float32."""
    import transformers

    name, changes = FAMILIES[family]
    config_class = getattr(transformers, name)
    torch.manual_seed(7)
    if name == "Gemma3Config":
        model = transformers.Gemma3ForConditionalGeneration._from_config(
            config_class(**changes), attn_implementation="eager"
        )
    else:
        config = config_class(**{**SHAPE, **changes})
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() == 1:  # Norms and biases start as ones and zeros, which would hide a mistake.
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model.eval()


def local_model(directory: Path) -> LocalModel:
    """A directory as the model store hands it out."""
    return LocalModel(name="tiny", source="file://", path=directory, fingerprint="0", size_bytes=0)


def serve(directory: Path, tokenizer: LocalModel, **changes: object) -> Collector:
    """An engine on a directory's model that cuts prompts into pieces of 40 tokens."""
    changes = {"kv_cache_tokens": 4096, "max_step_tokens": 40, **changes}
    return Collector(
        create_engine(local_model(directory), settings(**changes), (tokenizer.path / "tokenizer.json").read_text())
    )


def random_prompts(*lengths: int) -> list[list[int]]:
    """Prompts of random tokens; the same ones each time."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
