"""The shape of a decoder: what the families that the engine serves have in common, and where they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Activation: TypeAlias = Literal["silu", "gelu_tanh"]


class UnsupportedModelError(Exception):
    """A checkpoint asks for something that the engine does not compute."""


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al., 2021). `kind` is default, linear, llama3 or yarn; see `models/rope.py`.

    `attention_factor` multiplies cosines and sines, and so scores by its square.
    """

    kind: str
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ between the layers of one decoder.

    `rope` None leaves queries and keys as they are. `window` is the number of positions that a token attends to, itself
    included; None means all.
    """

    rope: RopeConfig | None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder of RMSNorm, rotary positions, grouped-query attention and a gated feed-forward in every layer.

    `attention_scale` multiplies scores; a softcap c then turns scores (or, finally, logits) x into c * tanh(x / c).
    `embedding_scale` multiplies embeddings. With `norm_offset` the checkpoint stores norm weights less one, and norms
    multiply in float32 before they round (Gemma); `post_norms` normalise what attention and feed-forward give as well.
    `module_prefix` begins the paths by which adapters name modules.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    layer_kinds: tuple[LayerKind, ...]
    tied_embeddings: bool
    eos_token_ids: frozenset[int]
    attention_scale: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    activation: Activation = "silu"
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    norm_offset: bool = False
    post_norms: bool = False
    module_prefix: str = "model."

    @property
    def layers(self) -> int:
        """Layers, each with its kind in `layer_kinds`."""
        return len(self.layer_kinds)

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads

    @property
    def uniform(self) -> bool:
        """Whether all layers are of one kind."""
        return len(set(self.layer_kinds)) == 1

    @property
    def plain(self) -> bool:
        """Whether a layer computes what Llama's does, biases and norms of queries and keys apart: none of the fields
        from `activation` to `post_norms` is set, and scores are scaled by the root of the head size."""
        return (
            self.activation == "silu"
            and self.attention_scale == self.head_dim**-0.5
            and self.attention_softcap is None
            and self.final_softcap is None
            and self.embedding_scale == 1.0
            and not self.norm_offset
            and not self.post_norms
        )
