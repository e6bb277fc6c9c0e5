"""Weights in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from argosy_services.engine.torch_engine.models.weights import LayerWeights, Linear
from argosy_services.engine.torch_engine.native.emit import LANES
from argosy_services.engine.torch_engine.native.formats import Format
from argosy_services.engine.torch_engine.native.four_bits import halve
from argosy_services.engine.torch_engine.native.layout import CHUNK, GROUP
from argosy_services.engine.torch_engine.native.memory import Shelf
from argosy_services.engine.torch_engine.native.writer import writer_of


@dataclass(frozen=True, slots=True)
class Packed:
    """A projection `[out, in]`: chunks of columns, each of them streams; see `gemm.py`.

    `weights` is uint8, `scales` and `bias` are float32 `[columns]`; `columns` is `out` rounded up to whole chunks.
    """

    form: str
    weights: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor
    chunks: int
    size: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk."""
        return self.weights.numel() // self.chunks


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """One block; norms are float32. See `models.weights.LayerWeights`."""

    input_norm: torch.Tensor
    qkv: Packed
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Packed
    mlp_norm: torch.Tensor
    gate_up: Packed
    down: Packed


def pack_layer(layer: LayerWeights, form: Format, shelf: Shelf) -> PackedLayer:
    """Packs a block; the weights are on the shelf.

    In four bits, query, key, value and down cost more of a model's accuracy than all else together: they stay as exact
    as their inputs.
    """
    sensitive = form.companion
    return PackedLayer(
        input_norm=layer.input_norm.float(),
        qkv=pack(layer.qkv, sensitive, shelf),
        query_norm=None if layer.query_norm is None else layer.query_norm.float(),
        key_norm=None if layer.key_norm is None else layer.key_norm.float(),
        output=pack(layer.output, form, shelf),
        mlp_norm=layer.mlp_norm.float(),
        gate_up=pack(layer.gate_up, form, shelf),
        down=pack(layer.down, sensitive, shelf),
    )


def pack(linear: Linear, form: Format, shelf: Shelf) -> Packed:
    """Packs a projection for the kernels of a format, quantizing it where that is less than its type."""
    outputs, size = linear.weight.shape
    chunks = -(-outputs // CHUNK)
    columns = chunks * CHUNK
    bias, scales = torch.zeros(columns), torch.ones(columns)
    if linear.bias is not None:
        bias[:outputs] = linear.bias.float()
    if form.name == "int4":
        packed = shelf.keep(_pack_halves(_whole_chunks(linear.weight, columns), form).flatten())
    else:
        packed = _written(linear.weight, form, shelf, scales)
    return Packed(form.name, packed, scales, bias, chunks, size)


def _written(weight: torch.Tensor, form: Format, shelf: Shelf, scales: torch.Tensor) -> torch.Tensor:
    """The weights `[columns, size]` in the format's order, on the shelf. Fills in the scales where it has some."""
    write, (outputs, size) = writer_of(form), weight.shape
    given = (weight if weight.dtype in write.sources else weight.to(write.sources[0])).contiguous()
    packed = shelf.take(len(scales) * size * write.width)
    addresses = (tensor.data_ptr() for tensor in (given, packed, scales))
    write(np.array([[*addresses, outputs, size, size, form.processor.vectors]], np.int64), given.dtype)
    return packed


def _whole_chunks(weight: torch.Tensor, columns: int) -> torch.Tensor:
    outputs, size = weight.shape
    return weight if outputs == columns else torch.cat((weight, weight.new_zeros(columns - outputs, size)))


def lanes(weight: torch.Tensor, vectors: int, together: int) -> torch.Tensor:
    """`[columns, n]` as `[streams, n / together, vectors, 16, together]`."""
    parts = weight.view(-1, vectors, LANES, weight.shape[1] // together, together)
    return parts.permute(0, 3, 1, 2, 4).contiguous()


def _pack_halves(weight: torch.Tensor, form: Format) -> torch.Tensor:
    """Groups as `gemm.Int4` reads them, uint8 `[streams, groups, bytes]`."""
    vectors, together = form.processor.vectors, form.together
    levels, scales = halve(weight)
    first, second = levels.unflatten(1, (-1, 2, together)).unbind(2)
    halves = lanes((first | second << 4).flatten(1), vectors, together)
    streams, groups = len(halves), weight.shape[1] // GROUP
    parts = (lanes(scales, vectors, 1).view(torch.uint8), halves)
    return torch.cat([part.reshape(streams, groups, -1) for part in parts], dim=2)
