"""The blocks of an encoder in torch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from argosy_services.embeddings.attention import attend
from argosy_services.embeddings.linear import Projection
from argosy_services.embeddings.packing import Packed
from argosy_services.embeddings.weights import LayerWeights, Norm
from argosy_services.engine.torch_engine.models.weights import Linear


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Projection
    output: Projection
    attention_norm: Norm
    up: Projection
    down: Projection
    norm: Norm


class TorchBlocks:
    """Computes in `dtype`; see `bert.Blocks`."""

    def __init__(self, heads: int, layers: Iterable[LayerWeights], dtype: torch.dtype) -> None:
        self._heads = heads
        self._dtype = dtype
        self._layers = [self._layer(layer) for layer in layers]

    def replaced(self, layers: Mapping[int, LayerWeights]) -> TorchBlocks:
        """See `bert.Blocks`."""
        made = copy.copy(self)
        made._layers = list(self._layers)
        for index, layer in layers.items():
            made._layers[index] = self._layer(layer)
        return made

    def __call__(self, states: torch.Tensor, packed: Packed, cores: int) -> torch.Tensor:
        """See `bert.Blocks`."""
        states = states.to(self._dtype)
        for layer in self._layers:
            mixed = attend(layer.qkv(states), self._heads, packed.groups)
            states = layer.attention_norm(layer.output.added(mixed, states))
            states = layer.norm(layer.down.added(layer.up.gelu(states), states))
        return states

    def _layer(self, layer: LayerWeights) -> _Layer:
        return _Layer(
            qkv=self._projection(layer.qkv),
            output=self._projection(layer.output),
            attention_norm=self._norm(layer.attention_norm),
            up=self._projection(layer.up),
            down=self._projection(layer.down),
            norm=self._norm(layer.norm),
        )

    def _projection(self, linear: Linear) -> Projection:
        assert linear.bias is not None
        return Projection(linear.weight.to(self._dtype), linear.bias.to(self._dtype))

    def _norm(self, norm: Norm) -> Norm:
        return Norm(norm.weight.to(self._dtype), norm.bias.to(self._dtype), norm.eps)
