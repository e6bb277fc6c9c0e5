"""The BERT encoder (Devlin et al., 2018) in plain torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from argosy_services.embeddings.attention import attend
from argosy_services.embeddings.config import BertConfig, unusable
from argosy_services.embeddings.linear import Linear
from argosy_services.embeddings.packing import Packed
from argosy_services.engine.torch_engine.lora.reader import LoraPair
from argosy_services.models.types import LocalModel

_PARTS = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation: weight and bias [hidden]."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """[..., hidden] to the same shape."""
        return functional.layer_norm(states, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    """One block. `qkv` stacks the rows of query, key and value."""

    qkv: Linear
    output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


class BertEncoder:
    """Token ids to one vector for each token, computed in `dtype`."""

    def __init__(self, local: LocalModel, config: BertConfig, reader: _Reader, dtype: torch.dtype) -> None:
        self._local = local
        self._config = config
        self._heads = config.heads
        self._dtype = dtype
        hidden, eps = config.hidden_size, config.norm_eps
        self._words = reader.tensor("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        positions = reader.tensor("embeddings.position_embeddings.weight", config.max_positions, hidden)
        types = reader.tensor("embeddings.token_type_embeddings.weight", config.token_types, hidden)
        # Every token of a single text has type 0.
        self._positions = positions + types[0]
        self._embedding_norm = reader.norm("embeddings.LayerNorm", hidden, eps, torch.float32)
        self._layers = [_layer(reader, config, _prefix(index), dtype) for index in range(config.layers)]
        self.parameter_count = reader.parameter_count

    @classmethod
    def load(cls, local: LocalModel, config: BertConfig, dtype: torch.dtype) -> BertEncoder:
        """Reads every `*.safetensors` of a model. Raises NOT_SUPPORTED for a missing or misshapen tensor."""
        with ExitStack() as stack:
            return cls(local, config, _Reader(local, stack), dtype)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The layers that adapters may change: by path, (out, in)."""
        hidden, inner = self._config.hidden_size, self._config.intermediate_size
        square = [f"attention.self.{name}" for name in _PARTS] + ["attention.output.dense"]
        of_layer = dict.fromkeys(square, (hidden, hidden))
        of_layer |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        return {_prefix(index) + path: shape for index in range(len(self._layers)) for path, shape in of_layer.items()}

    def adapted(self, changes: Mapping[str, LoraPair]) -> BertEncoder:
        """An encoder with the factors of an adapter, float32, added to the layers at these paths. It shares everything
        else with this one. Reads the weights again. Raises NOT_SUPPORTED where they are gone.
        """
        made = copy.copy(self)
        with ExitStack() as stack:
            reader = _Reader(self._local, stack, changes)
            made._layers = [
                _layer(reader, self._config, prefix, self._dtype)
                if any(path.startswith(prefix) for path in changes)
                else layer
                for prefix, layer in zip(map(_prefix, range(len(self._layers))), self._layers, strict=True)
            ]
        return made

    def __call__(self, packed: Packed) -> torch.Tensor:
        """The vectors [rows, hidden] of the rows of a batch, in the encoder's type."""
        states = functional.embedding(packed.ids, self._words) + functional.embedding(packed.positions, self._positions)
        states = self._embedding_norm(states).to(self._dtype)
        for layer in self._layers:
            mixed = attend(layer.qkv(states), self._heads, packed.groups)
            states = layer.attention_norm(layer.output.added(mixed, states))
            states = layer.norm(layer.down.added(layer.up.gelu(states), states))
        return states


def _prefix(layer: int) -> str:
    return f"encoder.layer.{layer}."


def _layer(reader: _Reader, config: BertConfig, prefix: str, dtype: torch.dtype) -> Layer:
    hidden, inner, eps = config.hidden_size, config.intermediate_size, config.norm_eps
    names = [f"{prefix}attention.self.{name}" for name in _PARTS]
    return Layer(
        qkv=reader.linear(names, hidden, hidden, dtype),
        output=reader.linear([f"{prefix}attention.output.dense"], hidden, hidden, dtype),
        attention_norm=reader.norm(f"{prefix}attention.output.LayerNorm", hidden, eps, dtype),
        up=reader.linear([f"{prefix}intermediate.dense"], inner, hidden, dtype),
        down=reader.linear([f"{prefix}output.dense"], hidden, inner, dtype),
        norm=reader.norm(f"{prefix}output.LayerNorm", hidden, eps, dtype),
    )


class _Reader:
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
        shard = self._shards.get(name)
        if shard is None:
            raise unusable(self._local, f"its weights lack {name}")
        tensor = shard.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise unusable(self._local, f"{name} has shape {tuple(tensor.shape)}, config.json says {shape}")
        self.parameter_count += tensor.numel()
        return tensor.float()

    def linear(self, names: Sequence[str], outputs: int, inputs: int, dtype: torch.dtype) -> Linear:
        """The projections of these names, stacked into one."""
        weights = [self._weight(name, outputs, inputs) for name in names]
        biases = [self.tensor(f"{name}.bias", outputs) for name in names]
        return Linear(torch.cat(weights).to(dtype), torch.cat(biases).to(dtype))

    def _weight(self, name: str, outputs: int, inputs: int) -> torch.Tensor:
        weight = self.tensor(f"{name}.weight", outputs, inputs)
        change = self._changes.get(name)
        return weight if change is None else weight + change.b @ change.a

    def norm(self, name: str, size: int, eps: float, dtype: torch.dtype) -> Norm:
        weight, bias = self.tensor(f"{name}.weight", size), self.tensor(f"{name}.bias", size)
        return Norm(weight.to(dtype), bias.to(dtype), eps)
