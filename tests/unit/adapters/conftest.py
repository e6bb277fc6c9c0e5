"""Small adapters on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SHAPES = {
    "model.layers.0.self_attn.q_proj": (8, 8),
    "model.layers.0.mlp.down_proj": (8, 12),
    "model.layers.1.self_attn.q_proj": (8, 8),
    "model.layers.1.mlp.down_proj": (8, 12),
}

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def shapes() -> Mapping[str, tuple[int, int]]:
    """Layers of a model of two layers, (out_features, in_features) by path."""
    return SHAPES


@pytest.fixture
def write_adapter(tmp_path: Path) -> Writer:
    """Writes an adapter of rank 2 for `shapes`; options and tensors replace the defaults, None removes one."""

    def write(
        name: str = "adapter",
        *,
        root: Path = tmp_path,
        options: Mapping[str, object] = {},
        tensors: Mapping[str, torch.Tensor | None] = {},
        rank: int = 2,
    ) -> Path:
        directory = root / name
        directory.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
        config = {key: value for key, value in {**config, **options}.items() if value is not None}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(7)
        weights: dict[str, torch.Tensor | None] = {}
        for path, (out_features, in_features) in SHAPES.items():
            weights[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator)
            weights[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator)
        weights.update(tensors)
        kept = {key: value for key, value in weights.items() if value is not None}
        save_file(kept, directory / "adapter_model.safetensors")
        return directory

    return write
