"""The Llama family's forward pass over a flat batch: tokens of all sequences in one row each, without padding.

Equal to transformers' implementations in float32 (tests/reference). Attention and adapters come in as objects, so that
this module knows neither blocks nor slots.
"""

from __future__ import annotations

from typing import Protocol

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.models.rope import rope_tables, rotate
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LayerWeights, project


class Attention(Protocol):
    """Attends over what a batch's sequences have in their caches."""

    def __call__(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Stores keys and values `[tokens, kv_heads, head_dim]`, then attends with `query` `[tokens, heads, head_dim]`;
        gives `[tokens, heads * head_dim]`."""
        ...


class Adapters(Protocol):
    """Adds the low-rank products of a batch's adapters."""

    def add(self, module: str, states: torch.Tensor, out: torch.Tensor) -> None:
        """Adds each row's adapter product for `module` to `out` `[tokens, out_features]`, in place."""
        ...


class Decoder:
    """A decoder with its weights."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, max_positions: int) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embeddings.dtype
        self.device = weights.embeddings.device
        self._cos, self._sin = rope_tables(config, max_positions, self.device)
        self._modules = [_ModuleNames(index) for index in range(config.layers)]

    @torch.inference_mode()
    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attention, adapters: Adapters
    ) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]` of int64 `token_ids` and `positions`, each `[tokens]`."""
        cos = self._cos[positions].to(self.dtype).unsqueeze(1)
        sin = self._sin[positions].to(self.dtype).unsqueeze(1)
        states = torch.nn.functional.embedding(token_ids, self.weights.embeddings)
        for index, (layer, modules) in enumerate(zip(self.weights.layers, self._modules, strict=True)):
            normed = self._norm(states, layer.input_norm)
            query, key, value = self._qkv(layer, modules, normed, adapters)
            attended = attention(index, rotate(query, cos, sin), rotate(key, cos, sin), value)
            output = layer.output(attended)
            adapters.add(modules.output, attended, output)
            states = states + output
            states = states + self._mlp(layer, modules, self._norm(states, layer.mlp_norm), adapters)
        return self._norm(states, self.weights.final_norm)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[rows, vocab]` of `hidden` `[rows, hidden]`."""
        return project(hidden, self.weights.head).float()

    def adaptable(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every projection that an adapter may change, by module path."""
        config = self.config
        query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
        shapes: dict[str, tuple[int, int]] = {}
        for names in self._modules:
            shapes[names.query] = (query, config.hidden_size)
            shapes[names.key] = shapes[names.value] = (key_value, config.hidden_size)
            shapes[names.output] = (config.hidden_size, query)
            shapes[names.gate] = shapes[names.up] = (config.intermediate_size, config.hidden_size)
            shapes[names.down] = (config.hidden_size, config.intermediate_size)
        return shapes

    def _qkv(
        self, layer: LayerWeights, modules: _ModuleNames, normed: torch.Tensor, adapters: Adapters
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        sizes = (config.heads * config.head_dim, *(2 * (config.kv_heads * config.head_dim,)))
        parts = layer.qkv(normed).split(sizes, dim=-1)
        for module, part in zip((modules.query, modules.key, modules.value), parts, strict=True):
            adapters.add(module, normed, part)
        query, key, value = (part.unflatten(-1, (-1, config.head_dim)) for part in parts)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
        return query, key, value

    def _mlp(
        self, layer: LayerWeights, modules: _ModuleNames, normed: torch.Tensor, adapters: Adapters
    ) -> torch.Tensor:
        gate, up = layer.gate_up(normed).chunk(2, dim=-1)
        adapters.add(modules.gate, normed, gate)
        adapters.add(modules.up, normed, up)
        inner = torch.nn.functional.silu(gate) * up
        output = layer.down(inner)
        adapters.add(modules.down, inner, output)
        return output

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm (Zhang and Sennrich, 2019), computed in float32."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return weight * wide.to(states.dtype)


class _ModuleNames:
    """A layer's module paths, as checkpoints and adapters spell them."""

    __slots__ = ("down", "gate", "key", "output", "query", "up", "value")

    def __init__(self, layer: int) -> None:
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        self.query, self.key, self.value = attention + "q_proj", attention + "k_proj", attention + "v_proj"
        self.output = attention + "o_proj"
        self.gate, self.up, self.down = mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj"
