"""Random LoRA adapters in PEFT's format, as a user would have fine-tuned them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

COUNT, RANK = 16, 16
# The layers that an adapter changes, by the name of the set.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qv": ("q_proj", "v_proj"),
}
_MLP = ("gate_proj", "up_proj", "down_proj")


def names(targets: str) -> list[str]:
    """Names of the adapters of a set."""
    return [f"{targets}-{number}" for number in range(COUNT)]


def write(model: Path, directory: Path, targets: str) -> dict[str, Path]:
    """Writes the adapters of a set for the Llama-shaped checkpoint `model`; their directories by name."""
    config = json.loads((model / "config.json").read_text())
    random = torch.Generator().manual_seed(0)
    written = {}
    for name in names(targets):
        path = directory / name
        path.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for layer in range(config["num_hidden_layers"]):
            for module in TARGETS[targets]:
                outputs, inputs = _shape(config, module)
                block = "mlp" if module in _MLP else "self_attn"
                prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
                a = torch.randn(RANK, inputs, generator=random) * inputs**-0.5
                b = torch.randn(outputs, RANK, generator=random) * 0.002
                tensors[f"{prefix}.lora_A.weight"] = a.bfloat16()
                tensors[f"{prefix}.lora_B.weight"] = b.bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(_config(targets)))
        written[name] = path
    return written


def _shape(config: Mapping[str, int], module: str) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (wide, hidden),
        "up_proj": (wide, hidden),
        "down_proj": (hidden, wide),
    }[module]


def _config(targets: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": list(TARGETS[targets]),
        "bias": "none",
    }
