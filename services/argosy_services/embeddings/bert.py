"""The BERT encoder (Devlin et al., 2018) in plain torch, float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from argosy_services.embeddings.config import BertConfig, unusable
from argosy_services.models.types import LocalModel


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection: weight [out, in], bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return functional.linear(states, self.weight, self.bias)


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
    """Token ids to one vector for each token."""

    def __init__(self, config: BertConfig, reader: _Reader) -> None:
        self._heads = config.heads
        hidden, eps = config.hidden_size, config.norm_eps
        self._words = reader.tensor("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        positions = reader.tensor("embeddings.position_embeddings.weight", config.max_positions, hidden)
        types = reader.tensor("embeddings.token_type_embeddings.weight", config.token_types, hidden)
        # Every token of a single text has type 0.
        self._positions = positions + types[0]
        self._embedding_norm = reader.norm("embeddings.LayerNorm", hidden, eps)
        self._layers = [_layer(reader, config, f"encoder.layer.{index}.") for index in range(config.layers)]
        self.parameter_count = sum(map(torch.Tensor.numel, self._tensors())) + types.numel()

    @classmethod
    def load(cls, local: LocalModel, config: BertConfig) -> BertEncoder:
        """Reads every `*.safetensors` of a model. Raises NOT_SUPPORTED for a missing or misshapen tensor."""
        with ExitStack() as stack:
            return cls(config, _Reader(local, stack))

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`ids` int64 and `mask` bool, both [texts, tokens], mask False at padding, to float32 [texts, tokens, hidden].

        Every text has at least one token.
        """
        states = functional.embedding(ids, self._words) + self._positions[: ids.shape[1]]
        states = self._embedding_norm(states)
        # Without padding torch takes a faster kernel than with a mask of nothing but True.
        attended = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in self._layers:
            states = layer.attention_norm(states + layer.output(self._attend(layer.qkv(states), attended)))
            states = layer.norm(states + layer.down(functional.gelu(layer.up(states))))
        return states

    def _attend(self, qkv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        texts, tokens, width = qkv.shape
        query, key, value = qkv.view(texts, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(texts, tokens, width // 3)

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield self._words
        yield self._positions
        norms = [self._embedding_norm]
        for layer in self._layers:
            norms += [layer.attention_norm, layer.norm]
            for linear in (layer.qkv, layer.output, layer.up, layer.down):
                yield linear.weight
                yield linear.bias
        for norm in norms:
            yield norm.weight
            yield norm.bias


def _layer(reader: _Reader, config: BertConfig, prefix: str) -> Layer:
    hidden, inner, eps = config.hidden_size, config.intermediate_size, config.norm_eps
    parts = [reader.linear(f"{prefix}attention.self.{name}", hidden, hidden) for name in ("query", "key", "value")]
    return Layer(
        qkv=Linear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])),
        output=reader.linear(f"{prefix}attention.output.dense", hidden, hidden),
        attention_norm=reader.norm(f"{prefix}attention.output.LayerNorm", hidden, eps),
        up=reader.linear(f"{prefix}intermediate.dense", inner, hidden),
        down=reader.linear(f"{prefix}output.dense", hidden, inner),
        norm=reader.norm(f"{prefix}output.LayerNorm", hidden, eps),
    )


class _Reader:
    """Finds tensors by name over all shards of a model."""

    def __init__(self, local: LocalModel, stack: ExitStack) -> None:
        self._local = local
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
        return tensor.float()

    def linear(self, name: str, outputs: int, inputs: int) -> Linear:
        return Linear(self.tensor(f"{name}.weight", outputs, inputs), self.tensor(f"{name}.bias", outputs))

    def norm(self, name: str, size: int, eps: float) -> Norm:
        return Norm(self.tensor(f"{name}.weight", size), self.tensor(f"{name}.bias", size), eps)
