"""Rotary position embeddings (Su et al., 2021), in the half-split layout that Hugging Face checkpoints use."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch

from argosy_services.engine.torch_engine.config import RopeConfig

Turn: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of a batch's positions, each `[tokens, 1, head_dim]`."""


def rope_tables(
    rope: RopeConfig, head_dim: int, positions: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every position, each float32 `[positions, head_dim]` with both halves alike."""
    frequencies = _frequencies(rope, head_dim)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = (table * rope.attention_factor for table in (angles.cos(), angles.sin()))
    return cos.to(device), sin.to(device)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns `states` `[tokens, heads, head_dim]` by its positions; `cos` and `sin` are `[tokens, 1, head_dim]`."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos + turned * sin


def _frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    if rope.kind == "yarn":
        return _yarn(frequencies, rope, head_dim)
    return frequencies


def _llama3(frequencies: torch.Tensor, rope: RopeConfig) -> torch.Tensor:
    """Llama 3.1's stretch of long wavelengths: low frequencies are divided by `factor`, high ones are kept, and those
    between are blended."""
    wavelengths = 2 * math.pi / frequencies
    longest = rope.original_max_positions / rope.low_freq_factor
    shortest = rope.original_max_positions / rope.high_freq_factor
    blend = (rope.original_max_positions / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * frequencies / rope.factor + blend * frequencies
    scaled = torch.where(wavelengths > longest, frequencies / rope.factor, frequencies)
    between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(between, blended, scaled)


def _yarn(frequencies: torch.Tensor, rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """YaRN (Peng et al., 2023): dimensions that turn often within the trained length are kept, those that hardly turn
    are divided by `factor`, and between the two there is a ramp over the dimensions."""
    first, last = (_dimension(turns, rope, head_dim) for turns in (rope.beta_fast, rope.beta_slow))
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first if last != first else 0.001
    stretched = ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return frequencies / rope.factor * stretched + frequencies * (1 - stretched)


def _dimension(turns: float, rope: RopeConfig, head_dim: int) -> float:
    """The (fractional) dimension that turns so many times within the trained length."""
    wavelength = rope.original_max_positions / (turns * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))
