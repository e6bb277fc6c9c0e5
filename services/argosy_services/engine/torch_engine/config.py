"""A decoder's shape, read from a Hugging Face `config.json`. What cannot be computed exactly is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnsupportedModelError(Exception):
    """A checkpoint asks for something that the engine does not compute."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al., 2021). `kind` is default, linear or llama3; see `models/rope.py`."""

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The Llama family: RMSNorm before each block, rotary positions, grouped-query attention, gated feed-forward.

    `window` is the number of positions that a token attends to, itself included; None means all.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    window: int | None
    eos_token_ids: frozenset[int]

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads


_QKV_BIAS = {"LlamaForCausalLM": None, "MistralForCausalLM": False, "Qwen2ForCausalLM": True, "Qwen3ForCausalLM": None}


def read_config(directory: Path) -> DecoderConfig:
    """Reads `config.json` and, for the end tokens, `generation_config.json`. Raises UnsupportedModelError."""
    config = json.loads((directory / "config.json").read_text())
    generation_file = directory / "generation_config.json"
    generation = json.loads(generation_file.read_text()) if generation_file.exists() else {}
    return parse_config(config, generation)


def parse_config(config: Mapping[str, Any], generation: Mapping[str, Any]) -> DecoderConfig:
    """The shape that a configuration describes. Raises UnsupportedModelError."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in _QKV_BIAS:
        raise UnsupportedModelError(
            f"architecture {architecture} is not served by the torch engine; served: {', '.join(sorted(_QKV_BIAS))}"
        )
    _require(config, "hidden_act", "silu", ("silu", "swish"))
    _require(config, "quantization_config", None, (None,))
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise UnsupportedModelError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    qkv_bias = _QKV_BIAS[architecture]
    attention_bias = bool(config.get("attention_bias", False))
    return DecoderConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        max_positions=config["max_position_embeddings"],
        rope=_rope(config),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias if qkv_bias is None else qkv_bias,
        output_bias=attention_bias and qkv_bias is None,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        window=_window(config, architecture),
        eos_token_ids=_eos(config) | _eos(generation),
    )


def _require(config: Mapping[str, Any], key: str, default: object, allowed: tuple[object, ...]) -> None:
    value = config.get(key, default)
    if value not in allowed:
        raise UnsupportedModelError(f"{key} {value!r} is not served by the torch engine; served: {allowed}")


def _rope(config: Mapping[str, Any]) -> RopeConfig:
    # transformers 5 writes rope_parameters; before that there were rope_theta and rope_scaling.
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return RopeConfig("default", theta)
    if kind == "linear":
        return RopeConfig("linear", theta, factor=float(given["factor"]))
    if kind == "llama3":
        return RopeConfig(
            "llama3",
            theta,
            factor=float(given["factor"]),
            low_freq_factor=float(given["low_freq_factor"]),
            high_freq_factor=float(given["high_freq_factor"]),
            original_max_positions=int(given["original_max_position_embeddings"]),
        )
    raise UnsupportedModelError(
        f"rope type {kind!r} is not served by the torch engine; served: default, linear, llama3"
    )


def _window(config: Mapping[str, Any], architecture: str) -> int | None:
    window = config.get("sliding_window")
    if architecture == "MistralForCausalLM":
        return window
    if architecture in {"Qwen2ForCausalLM", "Qwen3ForCausalLM"} and config.get("use_sliding_window") and window:
        raise UnsupportedModelError("use_sliding_window with full-attention layers is not served by the torch engine")
    return None


def _eos(config: Mapping[str, Any]) -> frozenset[int]:
    given = config.get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(given) if isinstance(given, list) else frozenset((given,))
