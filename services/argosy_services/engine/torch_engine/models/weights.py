"""Reads a checkpoint's safetensors into the fused tensors that the decoder computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open

from argosy_services.engine.torch_engine.config import DecoderConfig, UnsupportedModelError

# Old checkpoints store the rotation's frequencies, which follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"

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
    """One block. `qkv` stacks the rows of query, key and value; `gate_up` those of gate and up. The post-norms are None
    where the configuration has none."""

    input_norm: torch.Tensor
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    attention_post_norm: torch.Tensor | None = None
    mlp_post_norm: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole decoder. `head` `[vocab, hidden]` is `embeddings` itself where the two are tied.

    Norm weights are what their norm multiplies by: where the configuration has `norm_offset`, one is added on loading,
    and they are float32 whatever the other weights are.
    """

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


LinearOf: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None], Linear]
"""Makes a projection of its weight and its bias."""


def load_weights(
    directory: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device, linear: LinearOf = Linear
) -> DecoderWeights:
    """Reads every `*.safetensors` of a directory. `linear` takes each projection as it is read: the weights of a
    narrower format are never all there in `dtype`.

    Raises UnsupportedModelError for a tensor that is missing or misshapen, and for one of a layer that the
    configuration has no use for: a model with it computes something else.
    """
    with ExitStack() as stack:
        reader = _Reader(directory, config, dtype, device, stack, linear=linear)
        embeddings = reader.tensor("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        head = (
            embeddings
            if config.tied_embeddings
            else reader.tensor("lm_head.weight", config.vocab_size, config.hidden_size)
        )
        weights = DecoderWeights(
            embeddings=embeddings,
            layers=tuple(_layer(reader, config, f"model.layers.{index}.") for index in range(config.layers)),
            final_norm=reader.norm("model.norm.weight", config.hidden_size),
            head=head,
        )
        reader.check_all_read()
        return weights


def _layer(reader: _Reader, config: DecoderConfig, prefix: str) -> LayerWeights:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    projections = ((attention + "q_proj", query), (attention + "k_proj", key_value), (attention + "v_proj", key_value))

    def norm(name: str, size: int = hidden, *, wanted: bool = True) -> torch.Tensor | None:
        return reader.norm(prefix + name + ".weight", size) if wanted else None

    # Gemma calls the norm before the feed-forward otherwise, and gives its usual name to the one after attention.
    mlp_norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    return LayerWeights(
        input_norm=reader.norm(prefix + "input_layernorm.weight", hidden),
        qkv=reader.stacked(projections, hidden, bias=config.qkv_bias),
        query_norm=norm("self_attn.q_norm", config.head_dim, wanted=config.qk_norm),
        key_norm=norm("self_attn.k_norm", config.head_dim, wanted=config.qk_norm),
        output=reader.stacked(((attention + "o_proj", hidden),), query, bias=config.output_bias),
        mlp_norm=reader.norm(f"{prefix}{mlp_norm}.weight", hidden),
        gate_up=reader.stacked(((mlp + "gate_proj", inner), (mlp + "up_proj", inner)), hidden, bias=config.mlp_bias),
        down=reader.stacked(((mlp + "down_proj", hidden),), inner, bias=config.mlp_bias),
        attention_post_norm=norm("post_attention_layernorm", wanted=config.post_norms),
        mlp_post_norm=norm("post_feedforward_layernorm", wanted=config.post_norms),
    )


class _Reader:
    """Finds tensors by name over all shards."""

    def __init__(
        self,
        directory: Path,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        stack: ExitStack,
        *,
        linear: LinearOf,
    ) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self._linear = linear
        self._places: dict[str, tuple[Any, str]] = {}
        self._unread: set[str] = set()
        for path in sorted(directory.glob("*.safetensors")):
            shard = stack.enter_context(safe_open(path, framework="pt"))
            self._places.update({_text_name(name): (shard, name) for name in list(shard.keys())})
        if not self._places:
            raise UnsupportedModelError(f"{directory} holds no safetensors weights")
        self._unread.update(self._places)

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor `name`, which must have `shape`."""
        return self._raw(name, shape).to(device=self._device, dtype=self._dtype)

    def norm(self, name: str, size: int) -> torch.Tensor:
        """The weight `name` of a norm, `[size]`."""
        if not self._config.norm_offset:
            return self.tensor(name, size)
        return self._raw(name, (size,)).to(device=self._device, dtype=torch.float32) + 1.0

    def stacked(self, parts: tuple[tuple[str, int], ...], inputs: int, *, bias: bool) -> Linear:
        """The projections `parts`, each a name and its output size, as one."""
        weights = [self.tensor(name + ".weight", outputs, inputs) for name, outputs in parts]
        biases = [self.tensor(name + ".bias", outputs) for name, outputs in parts] if bias else None
        return self._linear(torch.cat(weights), None if biases is None else torch.cat(biases))

    def check_all_read(self) -> None:
        """Raises UnsupportedModelError where a tensor of a layer was not asked for."""
        left = sorted(name for name in self._unread if name.startswith("model.layers.") and not name.endswith(_DERIVED))
        if left:
            raise UnsupportedModelError(
                f"the checkpoint has {len(left)} tensors that its configuration has no use for, such as {left[0]}"
            )

    def _raw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self._places:
            raise UnsupportedModelError(f"the checkpoint has no tensor {name}")
        shard, stored_name = self._places[name]
        self._unread.discard(name)
        tensor = shard.get_tensor(stored_name)
        if tuple(tensor.shape) != shape:
            raise UnsupportedModelError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the configuration says {shape}"
            )
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise UnsupportedModelError(
                f"tensor {name} has type {tensor.dtype}; served: float32, bfloat16, float16, float64"
            )
        return tensor


def _text_name(name: str) -> str:
    """A tensor's name as in a model of text alone; models that see images put theirs one level deeper."""
    for prefix in ("model.language_model.", "language_model.model."):
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.")
