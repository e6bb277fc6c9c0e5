"""Weights in the order in which the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argosy_services.engine.torch_engine.models.weights import LayerWeights, Linear
from argosy_services.engine.torch_engine.native.emit import LANES
from argosy_services.engine.torch_engine.native.gemm import FORMATS


@dataclass(frozen=True, slots=True)
class Packed:
    """A projection `[out, in]`: chunks of columns, each one stream; see `gemm.py`.

    `weights` is uint8, `scales` and `bias` are float32 `[columns]`; `columns` is `out` rounded up to whole chunks.
    """

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


def pack_layer(layer: LayerWeights, form: str) -> PackedLayer:
    """Packs a block."""
    return PackedLayer(
        input_norm=layer.input_norm.float(),
        qkv=pack(layer.qkv, form),
        query_norm=None if layer.query_norm is None else layer.query_norm.float(),
        key_norm=None if layer.key_norm is None else layer.key_norm.float(),
        output=pack(layer.output, form),
        mlp_norm=layer.mlp_norm.float(),
        gate_up=pack(layer.gate_up, form),
        down=pack(layer.down, form),
    )


def pack(linear: Linear, form: str) -> Packed:
    """Packs a projection for the kernels of a format, quantizing it where that is less than its type."""
    vectors = FORMATS[form].vectors
    weight, scales = narrow(linear.weight, form)
    outputs, size = weight.shape
    chunks = -(-outputs // (vectors * LANES))
    columns = chunks * vectors * LANES
    if columns != outputs:
        weight = torch.cat((weight, weight.new_zeros(columns - outputs, size)))
    together = 4 // weight.itemsize
    lanes = weight.view(chunks, vectors, LANES, size // together, together)
    packed = lanes.permute(0, 3, 1, 2, 4).contiguous().flatten().view(torch.uint8)
    bias = torch.zeros(columns)
    if linear.bias is not None:
        bias[:outputs] = linear.bias.float()
    padded = torch.ones(columns)
    padded[:outputs] = scales
    return Packed(packed, padded, bias, chunks, size)


def narrow(weight: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights in a format's type, and the scale of each output."""
    if form == "int8":
        wide = weight.float()
        scales = wide.abs().amax(dim=1).clamp_min(1e-12) / 127
        return wide.div_(scales[:, None]).round_().add_(128).to(torch.uint8), scales
    return weight.to(torch.bfloat16 if form == "bfloat16" else torch.float32), torch.ones(len(weight))
