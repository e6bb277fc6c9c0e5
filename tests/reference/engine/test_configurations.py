"""Configurations as they were published, against what transformers makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from argosy_services.engine.torch_engine.architectures import parse_config

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("LlamaForCausalLM", {**SIZES, "num_key_value_heads": 4, "rope_scaling": None, "rms_norm_eps": 1e-5}),
    "llama 3.2": (
        "LlamaForCausalLM",
        {**SIZES, "num_key_value_heads": 2, "rope_theta": 500_000.0, "rope_scaling": LLAMA3, "eos_token_id": [7, 8]},
    ),
    "mistral 0.1": ("MistralForCausalLM", {**SIZES, "num_key_value_heads": 2, "sliding_window": 512}),
    "mistral 0.3": (
        "MistralForCausalLM",
        {**SIZES, "num_key_value_heads": 2, "sliding_window": None, "rope_theta": 1e6},
    ),
    "qwen 2.5": (
        "Qwen2ForCausalLM",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "rope_theta": 1e6,
            "sliding_window": 512,
            "use_sliding_window": False,
            "max_window_layers": 10,
            "tie_word_embeddings": True,
        },
    ),
    "qwen 2.5, long": (
        "Qwen2ForCausalLM",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 1024, "type": "yarn"},
            "sliding_window": 512,
            "use_sliding_window": True,
            "max_window_layers": 10,
        },
    ),
    "qwen 3": ("Qwen3ForCausalLM", {**SIZES, "num_key_value_heads": 2, "rope_theta": 1e6, "attention_bias": False}),
    "smollm 3": ("SmolLM3ForCausalLM", {**SIZES, "rope_theta": 5e6, "use_sliding_window": False}),
    "gemma 2": ("Gemma2ForCausalLM", {**SIZES, "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 144}),
    "gemma 3": (
        "Gemma3ForCausalLM",
        {
            **SIZES,
            "rope_local_base_freq": 10_000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1_000_000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
    ),
    "gemma 3, text of a model that sees images": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 64,
                "intermediate_size": 80,
                "num_hidden_layers": 12,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 16, "num_attention_heads": 2},
            "eos_token_id": [1, 106],
        },
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_configuration_means_what_transformers_makes_of_it(model: str) -> None:
    import transformers

    architecture, config = PUBLISHED[model]
    completed = getattr(transformers, architecture).config_class(**config).to_dict()
    given, expected = (parse_config({**form, "architectures": [architecture]}, {}) for form in (config, completed))
    if "eos_token_id" not in config:  # transformers completes these with the ids of one checkpoint
        expected = replace(expected, eos_token_ids=given.eos_token_ids)
    assert given == expected
