"""The decoder with kernels for what lies between its products."""

from __future__ import annotations

import torch

from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.gpu.kernels import Kernels
from argosy_services.engine.torch_engine.gpu.linear import project
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.models.weights import DecoderWeights


class GpuDecoder(Decoder):
    """See `Decoder`. Nothing in it waits for the device, so that it can be captured."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, max_positions: int, kernels: Kernels) -> None:
        super().__init__(config, weights, max_positions)
        self.kernels = kernels

    def _project(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return project(states, weight)

    def _added(
        self, states: torch.Tensor, output: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kernels.add_norm(states, output, weight, self.config.norm_eps, offset=self.config.norm_offset)

    def _gated(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.kernels.gated(gate, up, self.config.activation)

    def _norm(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.kernels.norm(states, weight, self.config.norm_eps, offset=self.config.norm_offset)
