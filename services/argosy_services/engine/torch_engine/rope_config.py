"""Reads the rotary positions of a `config.json`, in the form of transformers 5 or in the older one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from argosy_services.engine.torch_engine.config import RopeConfig, UnsupportedModelError

_DEFAULT_THETA = 10_000.0


def read_rope(config: Mapping[str, Any]) -> RopeConfig:
    """The rotation that a configuration asks for. Raises UnsupportedModelError.

    transformers 5 writes `rope_parameters`; before that there were `rope_theta` and `rope_scaling`.
    """
    given = {**(config.get("rope_scaling") or config.get("rope_parameters") or {})}
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise UnsupportedModelError(f"partial_rotary_factor {partial!r} is not served by the torch engine; served: 1.0")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"rope type {kind!r} is not served by the torch engine; served: {', '.join(_KINDS)}"
        )
    theta = float(given.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA)
    trained = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    given["original_max_position_embeddings"] = trained or config["max_position_embeddings"]
    try:
        return RopeConfig(kind, theta, **_KINDS[kind](given))
    except KeyError as error:
        raise UnsupportedModelError(f"rope type {kind!r} without {error.args[0]} cannot be served") from error


def _default(given: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _linear(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"factor": float(given["factor"])}


def _llama3(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "factor": float(given["factor"]),
        "low_freq_factor": float(given["low_freq_factor"]),
        "high_freq_factor": float(given["high_freq_factor"]),
        "original_max_positions": int(given["original_max_position_embeddings"]),
    }


def _yarn(given: Mapping[str, Any]) -> dict[str, Any]:
    factor = float(given["factor"])
    return {
        "factor": factor,
        "original_max_positions": int(given["original_max_position_embeddings"]),
        "attention_factor": _yarn_attention_factor(given, factor),
        "beta_fast": float(given.get("beta_fast") or 32.0),
        "beta_slow": float(given.get("beta_slow") or 1.0),
        "truncate": bool(given.get("truncate", True)),
    }


def _yarn_attention_factor(given: Mapping[str, Any], factor: float) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    scale, scale_all = given.get("mscale"), given.get("mscale_all_dim")
    if scale and scale_all:
        return _temperature(factor, scale) / _temperature(factor, scale_all)
    return _temperature(factor, 1.0)


def _temperature(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * scale * math.log(factor) + 1.0


_KINDS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
