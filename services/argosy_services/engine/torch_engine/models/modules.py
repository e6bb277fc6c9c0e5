"""The linear layers of a decoder, by the paths that checkpoints and adapters give them."""

from __future__ import annotations

from argosy_services.engine.torch_engine.config import DecoderConfig


class ModuleNames:
    """A layer's module paths."""

    __slots__ = ("down", "gate", "key", "output", "query", "up", "value")

    def __init__(self, prefix: str, layer: int) -> None:
        attention, mlp = f"{prefix}layers.{layer}.self_attn.", f"{prefix}layers.{layer}.mlp."
        self.query, self.key, self.value = attention + "q_proj", attention + "k_proj", attention + "v_proj"
        self.output = attention + "o_proj"
        self.gate, self.up, self.down = mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj"


def adaptable(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every projection that an adapter may change, by module path."""
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(config.layers):
        names = ModuleNames(config.module_prefix, layer)
        shapes[names.query] = (query, config.hidden_size)
        shapes[names.key] = shapes[names.value] = (key_value, config.hidden_size)
        shapes[names.output] = (config.hidden_size, query)
        shapes[names.gate] = shapes[names.up] = (config.intermediate_size, config.hidden_size)
        shapes[names.down] = (config.hidden_size, config.intermediate_size)
    return shapes
