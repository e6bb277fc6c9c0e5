"""What is read from a `config.json`, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from argosy_services.engine.torch_engine.architectures import parse_config
from argosy_services.engine.torch_engine.config import DecoderConfig, LayerKind, RopeConfig, UnsupportedModelError

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0}


def parse(architecture: str, **changes: Any) -> DecoderConfig:
    return parse_config({"architectures": [architecture], **SHAPE, **changes}, {})


@pytest.mark.parametrize(
    ("architecture", "changes", "problem"),
    [
        ("MambaForCausalLM", {}, "MambaForCausalLM is not served.*Gemma2ForCausalLM.*SmolLM3ForCausalLM"),
        ("Gemma2ForSequenceClassification", {}, "Gemma2ForSequenceClassification is not served"),
        ("LlamaForCausalLM", {"hidden_act": "relu"}, "hidden_act 'relu'.*served: 'silu'"),
        ("LlamaForCausalLM", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("LlamaForCausalLM", {"num_key_value_heads": 4}, "6 is no multiple of num_key_value_heads 4"),
        ("LlamaForCausalLM", {"head_dim": 7}, "head size 7 is odd"),
        ("LlamaForCausalLM", {"hidden_size": -1}, "hidden_size -1 is not a positive whole number"),
        ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'.*llama3, yarn"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "without low_freq_factor"),
        ("MistralForCausalLM", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window 0"),
        ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window or sliding_window"),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for 4 layers"),
        ("Qwen3ForCausalLM", {"layer_types": ["chunked_attention"] * 4}, "layer type 'chunked_attention'"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 4 layers"),
        ("Gemma2ForCausalLM", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": -3}, "final_logit_softcapping -3"),
        ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(architecture: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UnsupportedModelError, match=problem):
        parse(architecture, **changes)


def test_a_missing_size_is_named() -> None:
    config = {"architectures": ["LlamaForCausalLM"], **SHAPE}
    del config["vocab_size"]
    with pytest.raises(UnsupportedModelError, match="no vocab_size, which LlamaForCausalLM needs"):
        parse_config(config, {})


def test_layers_alternate_as_the_configuration_says() -> None:
    default = RopeConfig("default", 10_000.0)
    qwen = parse("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=8, max_window_layers=3, rope_theta=1e4)
    assert qwen.layer_kinds == (LayerKind(default),) * 3 + (LayerKind(default, 8),)
    smol = parse("SmolLM3ForCausalLM", rope_theta=1e4)
    assert smol.layer_kinds == (LayerKind(default),) * 3 + (LayerKind(None),)
    gemma = parse("Gemma2ForCausalLM", sliding_window=8)
    assert gemma.layer_kinds == (LayerKind(default, 8), LayerKind(default)) * 2
    gemma = parse("Gemma3ForCausalLM", sliding_window=8, sliding_window_pattern=4)
    assert gemma.layer_kinds == (LayerKind(default, 8),) * 3 + (LayerKind(RopeConfig("default", 1e6)),)


def test_plain_and_uniform_tell_llamas_from_the_others() -> None:
    assert parse("LlamaForCausalLM", attention_bias=True).plain
    assert parse("Qwen3ForCausalLM").plain
    assert not parse("Gemma2ForCausalLM").plain
    assert not parse("Gemma3ForCausalLM").plain
    assert parse("MistralForCausalLM", sliding_window=8).uniform
    smol = parse("SmolLM3ForCausalLM")
    assert smol.plain
    assert not smol.uniform


def test_end_tokens_come_from_both_files() -> None:
    config = {"architectures": ["LlamaForCausalLM"], **SHAPE, "eos_token_id": 2}
    assert parse_config(config, {"eos_token_id": [2, 7]}).eos_token_ids == {2, 7}
    assert parse_config({**config, "eos_token_id": None}, {}).eos_token_ids == frozenset()


def test_yarn_takes_its_temperature_from_the_factor() -> None:
    rope = parse("Qwen2ForCausalLM", rope_scaling=YARN).layer_kinds[0].rope
    assert rope is not None
    assert rope.attention_factor == pytest.approx(1.138629436)  # 0.1 ln(4) + 1
    assert rope.original_max_positions == SHAPE["max_position_embeddings"]
    scaled = {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}
    rope = parse("Qwen2ForCausalLM", rope_scaling=scaled).layer_kinds[0].rope
    assert rope is not None
    assert rope.attention_factor == pytest.approx(1.138629436 / 1.069314718)
