"""Weights in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.models.weights import LayerWeights, Linear
from argosy_services.engine.torch_engine.native.emit import LANES
from argosy_services.engine.torch_engine.native.four_bits import halve
from argosy_services.engine.torch_engine.native.gemm import Format
from argosy_services.engine.torch_engine.native.layout import CHUNK, GROUP
from argosy_services.engine.torch_engine.native.memory import Shelf

# Of int16 as much as lets 512 products with inputs of 13 bits be summed in 32.
_LARGEST = {"int8": 127, "int16": 1023}


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
    bias, padded = torch.zeros(columns), torch.ones(columns)
    if linear.bias is not None:
        bias[:outputs] = linear.bias.float()
    if form.name == "int4":
        packed = _pack_halves(_whole_chunks(linear.weight, columns), form)
    else:
        weight, padded[:outputs] = narrow(linear.weight, form.name)
        packed = lanes(_whole_chunks(weight, columns), form.processor.vectors, form.together)
    return Packed(form.name, shelf.keep(packed.flatten().view(torch.uint8)), padded, bias, chunks, size)


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


def narrow(weight: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights in a format's type, and the scale of each output."""
    if form in _LARGEST:
        # A copy, which is changed in place: weights may be in use elsewhere.
        wide = weight.to(torch.float32, copy=True)
        scales = wide.abs().amax(dim=1).clamp_min(1e-12) / _LARGEST[form]
        wide.div_(scales[:, None]).round_()
        return (wide.add_(128).to(torch.uint8) if form == "int8" else wide.to(torch.int16)), scales
    return weight.to(torch.bfloat16 if form == "bfloat16" else torch.float32), torch.ones(len(weight))
