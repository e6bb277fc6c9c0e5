"""The forward pass of every family over a flat batch: tokens of all sequences in one row each, without padding.

Equal to transformers' implementations in float32 (tests/reference). Attention and adapters come in as objects, so that
this module knows neither blocks nor slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch

from argosy_services.engine.torch_engine.config import Activation, DecoderConfig, RopeConfig
from argosy_services.engine.torch_engine.models.modules import ModuleNames
from argosy_services.engine.torch_engine.models.rope import Turn, rope_tables
from argosy_services.engine.torch_engine.models.weights import DecoderWeights, LayerWeights, project

_ACTIVATIONS: Mapping[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
}


def soft_cap(values: torch.Tensor, cap: float) -> torch.Tensor:
    """Squeezes `values` smoothly into (-cap, cap)."""
    return torch.tanh(values / cap) * cap


class Attention(Protocol):
    """Attends over what a batch's sequences have in their caches."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, turn: Turn | None
    ) -> torch.Tensor:
        """Turns queries and keys if the layer does, stores keys and values `[tokens, kv_heads, head_dim]`, then attends
        with `query` `[tokens, heads, head_dim]`; gives `[tokens, heads * head_dim]`."""
        ...


class Adapters(Protocol):
    """Adds the low-rank products of a batch's adapters."""

    def add(self, modules: Sequence[str], states: torch.Tensor, outs: Sequence[torch.Tensor]) -> None:
        """Adds each row's adapter products for `modules`, all of `states` `[tokens, in_features]`, to their `outs`
        `[tokens, out_features]`, in place. They may be parts of a fused projection's output."""
        ...


class Decoder:
    """A decoder with its weights."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, max_positions: int) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embeddings.dtype
        self.device = weights.embeddings.device
        self._activate = _ACTIVATIONS[config.activation]
        # Gemma rounds its scale as it rounds its weights.
        self._embedding_scale = torch.tensor(config.embedding_scale, dtype=self.dtype, device=self.device)
        self._turns = {
            rope: rope_tables(rope, config.head_dim, max_positions, self.device)
            for rope in (kind.rope for kind in config.layer_kinds)
            if rope is not None
        }
        self._modules = [ModuleNames(config.module_prefix, index) for index in range(config.layers)]

    @torch.inference_mode()
    def hidden(
        self, token_ids: torch.Tensor, positions: torch.Tensor, attention: Attention, adapters: Adapters
    ) -> torch.Tensor:
        """Final hidden states `[tokens, hidden]` of int64 `token_ids` and `positions`, each `[tokens]`."""
        turns = self._turns_at(positions)
        states = torch.nn.functional.embedding(token_ids, self.weights.embeddings)
        if self.config.embedding_scale != 1.0:
            states = states * self._embedding_scale
        normed = self._norm(states, self.weights.layers[0].input_norm)
        next_norms = (*(layer.input_norm for layer in self.weights.layers[1:]), self.weights.final_norm)
        for index, (layer, modules) in enumerate(zip(self.weights.layers, self._modules, strict=True)):
            query, key, value = self._qkv(layer, modules, normed, adapters)
            attended = attention(index, query, key, value, turns[index])
            output = layer.output(attended)
            adapters.add((modules.output,), attended, (output,))
            if layer.attention_post_norm is not None:
                output = self._norm(output, layer.attention_post_norm)
            states, normed = self._added(states, output, layer.mlp_norm)
            output = self._mlp(layer, modules, normed, adapters)
            if layer.mlp_post_norm is not None:
                output = self._norm(output, layer.mlp_post_norm)
            states, normed = self._added(states, output, next_norms[index])
        return normed

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits float32 `[rows, vocab]` of `hidden` `[rows, hidden]`."""
        logits = self._project(hidden, self.weights.head).float()
        cap = self.config.final_softcap
        return logits if cap is None else soft_cap(logits, cap)

    def _turns_at(self, positions: torch.Tensor) -> list[Turn | None]:
        """Every layer's cosines and sines at `positions`, each `[tokens, 1, head_dim]`; None where it does not turn."""
        turns: dict[RopeConfig | None, Turn | None] = {None: None}
        for rope, (cos, sin) in self._turns.items():
            turns[rope] = cos[positions].to(self.dtype).unsqueeze(1), sin[positions].to(self.dtype).unsqueeze(1)
        return [turns[kind.rope] for kind in self.config.layer_kinds]

    def _qkv(
        self, layer: LayerWeights, modules: ModuleNames, normed: torch.Tensor, adapters: Adapters
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        sizes = (config.heads * config.head_dim, *(2 * (config.kv_heads * config.head_dim,)))
        parts = layer.qkv(normed).split(sizes, dim=-1)
        adapters.add((modules.query, modules.key, modules.value), normed, parts)
        query, key, value = (part.unflatten(-1, (-1, config.head_dim)) for part in parts)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._norm(query, layer.query_norm), self._norm(key, layer.key_norm)
        return query, key, value

    def _mlp(self, layer: LayerWeights, modules: ModuleNames, normed: torch.Tensor, adapters: Adapters) -> torch.Tensor:
        gate, up = layer.gate_up(normed).chunk(2, dim=-1)
        adapters.add((modules.gate, modules.up), normed, (gate, up))
        inner = self._gated(gate, up)
        output = layer.down(inner)
        adapters.add((modules.down,), inner, (output,))
        return output

    # What a device may have kernels for; see gpu/decoder.py.

    def _project(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return project(states, weight)

    def _added(
        self, states: torch.Tensor, output: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of both, and its norm."""
        states = states + output
        return states, self._norm(states, weight)

    def _gated(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self._activate(gate) * up

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm (Zhang and Sennrich, 2019), computed in float32; Llama rounds before it multiplies, Gemma after."""
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        if self.config.norm_offset:
            return (wide * weight).to(states.dtype)
        return weight * wide.to(states.dtype)
