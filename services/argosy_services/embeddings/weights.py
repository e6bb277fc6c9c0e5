"""Reads the weights of an encoder from a checkpoint, with or without the factors of an adapter added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

from argosy_services.embeddings.config import BertConfig, unusable
from argosy_services.engine.torch_engine.lora.reader import LoraPair
from argosy_services.engine.torch_engine.models.weights import Linear
from argosy_services.models.types import LocalModel

PARTS = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation (Ba et al., 2016): weight and bias `[hidden]`."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to the same shape."""
        return torch.nn.functional.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block in float32. `qkv` stacks the rows of query, key and value. Every projection has a bias."""

    qkv: Linear
    output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


def layer_prefix(layer: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"encoder.layer.{layer}."


class WeightReader:
    """Finds tensors by name over all shards of a model."""

    def __init__(self, local: LocalModel, stack: ExitStack, changes: Mapping[str, LoraPair] | None = None) -> None:
        """`changes` are added to the weights of linear layers."""
        self._local = local
        self._changes = changes or {}
        self.parameter_count = 0
        self._shards = {}
        for path in sorted(local.path.glob("*.safetensors")):
            try:
                shard = stack.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise unusable(local, f"{path.name} is not a safetensors file: {error}") from error
            self._shards.update(dict.fromkeys(shard.keys(), shard))
        if not self._shards:
            raise unusable(local, "it has no *.safetensors")

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor in float32. Raises NOT_SUPPORTED where it is missing or has another shape."""
        shard = self._shards.get(name)
        if shard is None:
            raise unusable(self._local, f"its weights lack {name}")
        tensor = shard.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise unusable(self._local, f"{name} has shape {tuple(tensor.shape)}, config.json says {shape}")
        self.parameter_count += tensor.numel()
        return tensor.float()

    def norm(self, name: str, config: BertConfig) -> Norm:
        """The normalisation of this name."""
        weight, bias = (self.tensor(f"{name}.{part}", config.hidden_size) for part in ("weight", "bias"))
        return Norm(weight, bias, config.norm_eps)

    def layer(self, config: BertConfig, index: int) -> LayerWeights:
        """One block."""
        hidden, inner = config.hidden_size, config.intermediate_size
        prefix = layer_prefix(index)
        return LayerWeights(
            qkv=self._linear([f"{prefix}attention.self.{name}" for name in PARTS], hidden, hidden),
            output=self._linear([f"{prefix}attention.output.dense"], hidden, hidden),
            attention_norm=self.norm(f"{prefix}attention.output.LayerNorm", config),
            up=self._linear([f"{prefix}intermediate.dense"], inner, hidden),
            down=self._linear([f"{prefix}output.dense"], hidden, inner),
            norm=self.norm(f"{prefix}output.LayerNorm", config),
        )

    def _linear(self, names: Sequence[str], outputs: int, inputs: int) -> Linear:
        """The projections of these names, stacked into one."""
        weights = [self._weight(name, outputs, inputs) for name in names]
        biases = [self.tensor(f"{name}.bias", outputs) for name in names]
        return Linear(torch.cat(weights), torch.cat(biases))

    def _weight(self, name: str, outputs: int, inputs: int) -> torch.Tensor:
        weight = self.tensor(f"{name}.weight", outputs, inputs)
        change = self._changes.get(name)
        return weight if change is None else weight + change.b @ change.a
