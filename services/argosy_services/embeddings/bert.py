"""The BERT encoder (Devlin et al., 2018)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Protocol

import torch
from torch.nn import functional

from argosy_services.embeddings.blocks import TorchBlocks
from argosy_services.embeddings.config import BertConfig
from argosy_services.embeddings.packing import Packed
from argosy_services.embeddings.weights import PARTS, LayerWeights, WeightReader, layer_prefix
from argosy_services.engine.torch_engine.lora.reader import LoraPair
from argosy_services.models.types import LocalModel


class Blocks(Protocol):
    """The blocks of an encoder, with one kind of numbers."""

    def replaced(self, layers: Mapping[int, LayerWeights]) -> Blocks:
        """The same with other blocks at these numbers. It shares everything else with this one."""
        ...

    def __call__(self, states: torch.Tensor, packed: Packed, cores: int) -> torch.Tensor:
        """float32 `[rows, hidden]` of the rows of a batch to what comes out of the last block. For several threads, of
        which each has let torch use `cores`.
        """
        ...


class BertEncoder:
    """Token ids to one vector for each token."""

    def __init__(self, local: LocalModel, config: BertConfig, reader: WeightReader, numbers: str) -> None:
        self._local = local
        self._config = config
        hidden = config.hidden_size
        self._words = reader.tensor("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        positions = reader.tensor("embeddings.position_embeddings.weight", config.max_positions, hidden)
        types = reader.tensor("embeddings.token_type_embeddings.weight", config.token_types, hidden)
        # Every token of a single text has type 0.
        self._positions = positions + types[0]
        self._norm = reader.norm("embeddings.LayerNorm", config)
        self._blocks = _blocks(config, (reader.layer(config, index) for index in range(config.layers)), numbers)
        self.parameter_count = reader.parameter_count

    @classmethod
    def load(cls, local: LocalModel, config: BertConfig, numbers: str) -> BertEncoder:
        """Reads every `*.safetensors` of a model. Raises NOT_SUPPORTED for a missing or misshapen tensor.

        `numbers` is what blocks are computed with: float32, bfloat16 or int16.
        """
        with ExitStack() as stack:
            return cls(local, config, WeightReader(local, stack), numbers)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The layers that adapters may change: by path, (out, in)."""
        hidden, inner = self._config.hidden_size, self._config.intermediate_size
        square = [f"attention.self.{name}" for name in PARTS] + ["attention.output.dense"]
        of_layer = dict.fromkeys(square, (hidden, hidden))
        of_layer |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        layers = map(layer_prefix, range(self._config.layers))
        return {prefix + path: shape for prefix in layers for path, shape in of_layer.items()}

    def adapted(self, changes: Mapping[str, LoraPair]) -> BertEncoder:
        """An encoder with the factors of an adapter, float32, added to the layers at these paths. It shares everything
        else with this one. Reads the weights again. Raises NOT_SUPPORTED where they are gone.
        """
        made = copy.copy(self)
        changed = [
            index
            for index in range(self._config.layers)
            if any(path.startswith(layer_prefix(index)) for path in changes)
        ]
        with ExitStack() as stack:
            reader = WeightReader(self._local, stack, changes)
            made._blocks = self._blocks.replaced({index: reader.layer(self._config, index) for index in changed})
        return made

    def __call__(self, packed: Packed, cores: int) -> torch.Tensor:
        """The vectors `[rows, hidden]` of the rows of a batch, on so many cores. Sets the number of torch's threads for
        the thread that calls."""
        if torch.get_num_threads() != cores:
            torch.set_num_threads(cores)
        words = functional.embedding(packed.ids, self._words)
        return self._blocks(self._norm(words + functional.embedding(packed.positions, self._positions)), packed, cores)


def _blocks(config: BertConfig, layers: Iterable[LayerWeights], numbers: str) -> Blocks:
    if numbers == "int16":
        from argosy_services.embeddings.native_blocks import NativeBlocks

        return NativeBlocks(config, layers)
    return TorchBlocks(config.heads, layers, torch.float32 if numbers == "float32" else torch.bfloat16)
