"""What the model store gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A verified model on this machine.

    `path` is a directory with `config.json`, `tokenizer.json` and `*.safetensors` as Hugging Face lays them out.
    `fingerprint` is the SHA-256, in hexadecimal, over the names and digests of its files.
    """

    name: str
    source: str
    path: Path
    fingerprint: str
    size_bytes: int
