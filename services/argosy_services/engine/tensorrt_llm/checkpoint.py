"""What must be known of a Hugging Face checkpoint without loading it: sizes, limits, end tokens, linear layers."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The library's name of each layer that an adapter may change, by the last part of the layer's path.
LORA_MODULES: Mapping[str, str] = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "down_proj": "mlp_4h_to_h",
}

_LAYER = re.compile(r"(model\.layers\.\d+\.(?:self_attn|mlp)\.(\w+))\.weight")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`adaptable` maps each linear layer that an adapter may change to (out_features, in_features)."""

    architecture: str
    vocabulary_size: int
    max_positions: int
    dtype: str
    eos_token_ids: frozenset[int]
    parameter_count: int
    adaptable: Mapping[str, tuple[int, int]]


def read_checkpoint(directory: Path) -> Checkpoint:
    """Reads configuration and weight headers of a verified model; tied weights count once."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    generation_file = directory / "generation_config.json"
    generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
    shapes = {name: shape for path in sorted(directory.glob("*.safetensors")) for name, shape in _shapes(path).items()}
    return Checkpoint(
        architecture=(config.get("architectures") or ["unknown"])[0],
        vocabulary_size=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "auto"),
        eos_token_ids=_ids(config) | _ids(generation),
        parameter_count=sum(math.prod(shape) for shape in shapes.values()),
        adaptable=_adaptable(shapes),
    )


def _adaptable(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, shape in shapes.items():
        match = _LAYER.fullmatch(name)
        if match is not None and match[2] in LORA_MODULES and len(shape) == 2:
            found[match[1]] = (shape[0], shape[1])
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    # Only the header is read (https://github.com/huggingface/safetensors#format); the store has checked it.
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _ids(config: Mapping[str, Any]) -> frozenset[int]:
    given = config.get("eos_token_id")
    if given is None:
        return frozenset()
    return frozenset(given) if isinstance(given, list) else frozenset((given,))
