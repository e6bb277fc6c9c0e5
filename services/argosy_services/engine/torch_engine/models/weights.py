"""Reads a checkpoint's safetensors into the fused tensors that the decoder computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from argosy_services.engine.torch_engine.config import DecoderConfig, UnsupportedModelError

# For so few rows MKL multiplies a third faster with the weight on the left, 3,072 x 576 in float32 on two cores.
_FEW_ROWS = range(2, 33)


def project(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`states` `[rows, in]` times the transpose of `weight` `[out, in]`, plus `bias` `[out]`; gives `[rows, out]`."""
    if bias is None and states.device.type == "cpu" and len(states) in _FEW_ROWS:
        return torch.mm(weight, states.T).T.contiguous()
    return torch.nn.functional.linear(states, weight, bias)


@dataclass(frozen=True, slots=True)
class Linear:
    """A projection: weight `[out, in]` and an optional bias `[out]`."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """`[rows, in]` to `[rows, out]`."""
        return project(states, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block. `qkv` stacks the rows of query, key and value; `gate_up` those of gate and up."""

    input_norm: torch.Tensor
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole decoder. `head` `[vocab, hidden]` is `embeddings` itself where the two are tied."""

    embeddings: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: torch.Tensor

    def parameters(self) -> Iterator[torch.Tensor]:
        """Every tensor once."""
        yield self.embeddings
        yield self.final_norm
        if self.head is not self.embeddings:
            yield self.head
        for layer in self.layers:
            for value in (getattr(layer, name) for name in LayerWeights.__slots__):
                if isinstance(value, Linear):
                    yield value.weight
                    if value.bias is not None:
                        yield value.bias
                elif value is not None:
                    yield value


def load_weights(directory: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Reads every `*.safetensors` of a directory. Raises UnsupportedModelError for a missing or misshapen tensor."""
    with ExitStack() as stack:
        reader = _Reader(directory, dtype, device, stack)
        embeddings = reader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        head = (
            embeddings
            if config.tied_embeddings
            else reader.tensor("lm_head.weight", config.vocab_size, config.hidden_size)
        )
        return DecoderWeights(
            embeddings=embeddings,
            layers=tuple(_layer(reader, config, f"model.layers.{index}.") for index in range(config.layers)),
            final_norm=reader.tensor("model.norm.weight", config.hidden_size),
            head=head,
        )


def _layer(reader: _Reader, config: DecoderConfig, prefix: str) -> LayerWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    projections = ((attention + "q_proj", query), (attention + "k_proj", key_value), (attention + "v_proj", key_value))
    norm = config.head_dim if config.qk_norm else None
    return LayerWeights(
        input_norm=reader.tensor(prefix + "input_layernorm.weight", hidden),
        qkv=reader.stacked(projections, hidden, bias=config.qkv_bias),
        query_norm=None if norm is None else reader.tensor(attention + "q_norm.weight", norm),
        key_norm=None if norm is None else reader.tensor(attention + "k_norm.weight", norm),
        output=reader.stacked(((attention + "o_proj", hidden),), query, bias=config.output_bias),
        mlp_norm=reader.tensor(prefix + "post_attention_layernorm.weight", hidden),
        gate_up=reader.stacked(((mlp + "gate_proj", inner), (mlp + "up_proj", inner)), hidden, bias=config.mlp_bias),
        down=reader.stacked(((mlp + "down_proj", hidden),), inner, bias=config.mlp_bias),
    )


class _Reader:
    """Finds tensors by name over all shards."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device, stack: ExitStack) -> None:
        self._dtype = dtype
        self._device = device
        self._shards = {}
        for path in sorted(directory.glob("*.safetensors")):
            shard = stack.enter_context(safe_open(path, framework="pt"))
            self._shards.update(dict.fromkeys(shard.keys(), shard))
        if not self._shards:
            raise UnsupportedModelError(f"{directory} holds no safetensors weights")

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        shard = self._shards.get(name)
        if shard is None:
            raise UnsupportedModelError(f"the checkpoint has no tensor {name}")
        tensor = shard.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise UnsupportedModelError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the configuration says {shape}"
            )
        return tensor.to(device=self._device, dtype=self._dtype)

    def stacked(self, parts: tuple[tuple[str, int], ...], inputs: int, *, bias: bool) -> Linear:
        weights = [self.tensor(name + ".weight", outputs, inputs) for name, outputs in parts]
        biases = [self.tensor(name + ".bias", outputs) for name, outputs in parts] if bias else None
        return Linear(torch.cat(weights), None if biases is None else torch.cat(biases))
