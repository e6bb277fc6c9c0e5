"""Weights as four bits: which of `layout.LEVELS` each one is, and a scale for each group of 64 inputs."""

from __future__ import annotations

import numpy as np
import torch

from argosy_services.engine.torch_engine.native.layout import GROUP, LEVELS

# How often a scale is fitted to the levels that were chosen with the one before.
_FITS = 2
_TINY = 1e-12


def halve(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels uint8 `[out, in]` of a weight `[out, in]`, and their scales bfloat16 `[out, in / 64]`.

    At first a group's largest weight becomes the largest level. Then, in turns, the scale is the one of least squares
    for the levels, and each weight takes the nearest level (Lloyd, 1982); the pair with the least error is kept.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scales = _scale(largest / _VALUES[-1])
    levels, errors = _nearest(groups, scales)
    for _ in range(_FITS):
        values = _VALUES[levels.int()]
        fitted = _scale((groups * values).sum(2, keepdim=True) / values.square().sum(2, keepdim=True))
        others, their_errors = _nearest(groups, fitted)
        better = their_errors < errors
        levels, scales = torch.where(better, others, levels), torch.where(better, fitted, scales)
        errors = torch.where(better, their_errors, errors)
    return levels.flatten(1), scales.squeeze(2).to(torch.bfloat16)


def _scale(scales: torch.Tensor) -> torch.Tensor:
    """What bfloat16 makes of scales; never 0, because weights are divided by them."""
    tiny = scales.abs() < _TINY
    return scales.masked_fill(tiny, _TINY).to(torch.bfloat16).float()


def _nearest(groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The level of each weight, and the squared error of each group."""
    places = (groups / scales + 128).clamp_(0, 255).round_().to(torch.uint8)
    levels = torch.from_numpy(_LEVEL_OF[places.numpy()])
    return levels, (_VALUES[levels.int()] * scales - groups).square_().sum(2, keepdim=True)


_VALUES = torch.tensor(LEVELS, dtype=torch.float32) - 128
# The level that is nearest to each byte: much faster than to search for it.
_LEVEL_OF = np.abs(np.arange(256)[:, None] - np.array(LEVELS)).argmin(axis=1).astype(np.uint8)
