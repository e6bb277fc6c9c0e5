"""Reads a Hugging Face `config.json`, one function for each architecture. What cannot be computed exactly is refused by
name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from argosy_services.engine.torch_engine.config import DecoderConfig, LayerKind, RopeConfig, UnsupportedModelError
from argosy_services.engine.torch_engine.rope_config import read_rope

_Config: TypeAlias = Mapping[str, Any]

_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_config(directory: Path) -> DecoderConfig:
    """Reads `config.json` and, for the end tokens, `generation_config.json`. Raises UnsupportedModelError."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    generation_file = directory / "generation_config.json"
    generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
    return parse_config(config, generation)


def parse_config(config: _Config, generation: _Config) -> DecoderConfig:
    """The shape that a configuration describes. Raises UnsupportedModelError."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in _FAMILIES:
        raise UnsupportedModelError(
            f"architecture {architecture} is not served by the torch engine; served: {', '.join(sorted(_FAMILIES))}"
        )
    _require(config, "quantization_config", None)
    family, defaults = _FAMILIES[architecture]
    # The text part of a model that also sees images; what it does not say itself stands beside it.
    shared = {key: config[key] for key in ("tie_word_embeddings", "eos_token_id") if key in config}
    own = {**config.get("text_config", {}), **shared} if architecture == _GEMMA3_VISION else config
    merged = {**defaults, **own}
    try:
        fields = {**_shape(merged), **family(merged)}
    except KeyError as error:
        raise UnsupportedModelError(f"config.json has no {error.args[0]}, which {architecture} needs") from error
    if architecture == _GEMMA3_VISION:
        fields["module_prefix"] = "model.language_model."
    return DecoderConfig(architecture=architecture, eos_token_ids=_ids(merged) | _ids(generation), **fields)


def _shape(config: _Config) -> dict[str, Any]:
    heads, hidden = _positive(config, "num_attention_heads"), _positive(config, "hidden_size")
    kv_heads = _positive(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    if heads % kv_heads:
        raise UnsupportedModelError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    head_dim = _positive(config, "head_dim") if config.get("head_dim") is not None else hidden // heads
    if head_dim % 2:
        raise UnsupportedModelError(f"head size {head_dim} is odd; rotary positions need an even one")
    return {
        "vocab_size": _positive(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": _positive(config, "intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "attention_scale": head_dim**-0.5,
        "norm_eps": float(config.get("rms_norm_eps", 1e-6)),
        "max_positions": _positive(config, "max_position_embeddings"),
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def _llama(config: _Config) -> dict[str, Any]:
    _require(config, "hidden_act", "silu", "swish")
    bias = bool(config.get("attention_bias", False))
    return {
        "layer_kinds": (LayerKind(read_rope(config)),) * _layers(config),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
    }


def _mistral(config: _Config) -> dict[str, Any]:
    _require(config, "hidden_act", "silu", "swish")
    _require(config, "layer_types", None)
    window = _positive(config, "sliding_window") if config["sliding_window"] is not None else None
    return {"layer_kinds": (LayerKind(read_rope(config), window),) * _layers(config)}


def _qwen2(config: _Config) -> dict[str, Any]:
    _require(config, "hidden_act", "silu", "swish")
    layers, last_full = _layers(config), config["max_window_layers"]
    windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    types = [_SLIDING if windowed and index >= last_full else _FULL for index in range(layers)]
    rope = read_rope(config)
    windows = _windows(config, types, windowed=windowed)
    return {"layer_kinds": tuple(LayerKind(rope, window) for window in windows), "qkv_bias": True}


def _qwen3(config: _Config) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {**_qwen2(config), "qkv_bias": bias, "output_bias": bias, "qk_norm": True}


def _smollm3(config: _Config) -> dict[str, Any]:
    layers, interval = _layers(config), config["no_rope_layer_interval"]
    rotates = config.get("no_rope_layers") or [(index + 1) % interval != 0 for index in range(layers)]
    if len(rotates) < layers:
        raise UnsupportedModelError(f"no_rope_layers has {len(rotates)} entries for {layers} layers")
    windowed = bool(config.get("use_sliding_window")) and config.get("sliding_window") is not None
    types = [_SLIDING if windowed and not rotates[index] else _FULL for index in range(layers)]
    rope = read_rope(config)
    windows = _windows(config, types, windowed=windowed)
    kinds = (
        LayerKind(rope if turns else None, window) for turns, window in zip(rotates[:layers], windows, strict=True)
    )
    return {**_llama(config), "layer_kinds": tuple(kinds)}


def _gemma(config: _Config) -> dict[str, Any]:
    _require(config, "hidden_activation", "gelu_pytorch_tanh")
    _require(config, "use_bidirectional_attention", None, False)
    bias = bool(config.get("attention_bias", False))
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "activation": "gelu_tanh",
        "attention_scale": float(_positive(config, "query_pre_attn_scalar")) ** -0.5,
        "final_softcap": _softcap(config, "final_logit_softcapping"),
        "embedding_scale": _positive(config, "hidden_size") ** 0.5,
        "norm_offset": True,
        "post_norms": True,
    }


def _gemma2(config: _Config) -> dict[str, Any]:
    types = [_FULL if index % 2 else _SLIDING for index in range(_layers(config))]
    rope = read_rope(config)
    kinds = tuple(LayerKind(rope, window) for window in _windows(config, types, windowed=True))
    softcap = _softcap(config, "attn_logit_softcapping")
    return {**_gemma(config), "layer_kinds": kinds, "attention_softcap": softcap}


def _gemma3(config: _Config) -> dict[str, Any]:
    # transformers reads this setting for Gemma 3 and does not apply it.
    _require(config, "attn_logit_softcapping", None)
    pattern = _positive(config, "sliding_window_pattern")
    types = [_SLIDING if (index + 1) % pattern else _FULL for index in range(_layers(config))]
    local, everywhere = _gemma3_ropes(config)
    kinds = tuple(
        LayerKind(everywhere if window is None else local, window) for window in _windows(config, types, windowed=True)
    )
    return {**_gemma(config), "layer_kinds": kinds, "qk_norm": True}


def _gemma3_ropes(config: _Config) -> tuple[RopeConfig, RopeConfig]:
    """The rotations of the layers with a window and of those without one."""
    given = config.get("rope_parameters") or {}
    rest = {key: value for key, value in config.items() if key not in {"rope_parameters", "rope_scaling"}}
    local = {"rope_theta": config["rope_local_base_freq"], **(given.get(_SLIDING) or {})}
    # The scaling of a file in the old form is that of the global layers.
    everywhere = {"rope_theta": config["rope_theta"], **(given.get(_FULL) or {}), **(config.get("rope_scaling") or {})}
    return read_rope({**rest, "rope_parameters": local}), read_rope({**rest, "rope_parameters": everywhere})


def _windows(config: _Config, types: Sequence[str], *, windowed: bool) -> list[int | None]:
    """The window of every layer, by `layer_types` or else by `types`."""
    given = config.get("layer_types") or types
    if len(given) != len(types):
        raise UnsupportedModelError(f"layer_types has {len(given)} entries for {len(types)} layers")
    for kind in given:
        if kind not in {_SLIDING, _FULL}:
            raise UnsupportedModelError(
                f"layer type {kind!r} is not served by the torch engine; served: {_FULL}, {_SLIDING}"
            )
    if _SLIDING not in given:
        return [None] * len(given)
    if not windowed:
        raise UnsupportedModelError(
            f"layer_types names {_SLIDING}, but use_sliding_window or sliding_window is not set"
        )
    window = _positive(config, "sliding_window")
    return [window if kind == _SLIDING else None for kind in given]


def _layers(config: _Config) -> int:
    return _positive(config, "num_hidden_layers")


def _positive(config: _Config, key: str) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0 or value != int(value):
        raise UnsupportedModelError(f"{key} {value!r} is not a positive whole number")
    return int(value)


def _softcap(config: _Config, key: str) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or value <= 0:
        raise UnsupportedModelError(f"{key} {value!r} is not a positive number")
    return float(value)


def _require(config: _Config, key: str, *allowed: object) -> None:
    """Raises UnsupportedModelError where `key` has none of the allowed values; absent is as the first of them."""
    value = config.get(key, allowed[0])
    if value not in allowed:
        served = ", ".join(repr(one) for one in allowed)
        raise UnsupportedModelError(f"{key} {value!r} is not served by the torch engine; served: {served}")


def _ids(config: _Config) -> frozenset[int]:
    given = config.get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(given) if isinstance(given, list) else frozenset((given,))


_GEMMA3_VISION = "Gemma3ForConditionalGeneration"

# What transformers takes where a file leaves it out. Sizes must be in the file, but for Gemma's, whose text parts often
# come without them.
_QWEN_DEFAULTS: _Config = {"num_key_value_heads": 32, "max_window_layers": 28, "sliding_window": 4096}
_GEMMA_DEFAULTS: _Config = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
_GEMMA3_DEFAULTS: _Config = {
    **_GEMMA_DEFAULTS,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
_FAMILIES: Mapping[str, tuple[Callable[[_Config], dict[str, Any]], _Config]] = MappingProxyType(
    {
        "LlamaForCausalLM": (_llama, {}),
        "MistralForCausalLM": (_mistral, {"num_key_value_heads": 8, "sliding_window": 4096}),
        "Qwen2ForCausalLM": (_qwen2, {**_QWEN_DEFAULTS}),
        "Qwen3ForCausalLM": (_qwen3, {**_QWEN_DEFAULTS, "head_dim": 128}),
        "SmolLM3ForCausalLM": (
            _smollm3,
            {
                "num_key_value_heads": 4,
                "no_rope_layer_interval": 4,
                "rope_theta": 2_000_000.0,
                "tie_word_embeddings": True,
            },
        ),
        "Gemma2ForCausalLM": (
            _gemma2,
            {
                **_GEMMA_DEFAULTS,
                "vocab_size": 256_000,
                "max_position_embeddings": 8192,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
        ),
        "Gemma3ForCausalLM": (_gemma3, _GEMMA3_DEFAULTS),
        _GEMMA3_VISION: (_gemma3, _GEMMA3_DEFAULTS),
    }
)
