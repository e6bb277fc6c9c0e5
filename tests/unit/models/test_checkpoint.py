"""What counts as a checkpoint that can be served."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from argosy_services.models.checkpoint import check
from argosy_services.models.errors import SourceRefusedError


def test_a_sound_checkpoint_passes(make_checkpoint: Callable[..., Path]) -> None:
    check(make_checkpoint(), "origin")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{", "not JSON"),
        ("config.json", "[]", "not a JSON object"),
        ("config.json", "{}", "no model_type"),
        ("tokenizer.json", None, "no tokenizer.json; save its fast tokenizer"),
        ("tokenizer.json", "{}", "has no model"),
        ("model.safetensors.index.json", "{}", "no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}', "b.safetensors, which is not there"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../b.safetensors"}}', "unsafe path"),
    ],
)
def test_missing_and_broken_files(
    make_checkpoint: Callable[..., Path], name: str, content: str | None, said: str
) -> None:
    directory = make_checkpoint()
    (directory / name).unlink(missing_ok=True)
    if content is not None:
        (directory / name).write_text(content, encoding="utf-8")
    with pytest.raises(SourceRefusedError, match=said):
        check(directory, "origin")


def test_an_index_of_shards_that_are_there(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    check(directory, "origin")


def _header(declared: dict[str, object], data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(declared).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


_TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        _header({"a": _TENSOR}, bytes(8), length=1 << 60),
        _header({"a": _TENSOR}, bytes(8), length=4),
        _header({"a": _TENSOR}, bytes(4)),
        _header({"a": _TENSOR}, bytes(16)),
        _header({"a": {**_TENSOR, "data_offsets": [0, 1 << 40]}}, bytes(8)),
        _header({"a": {**_TENSOR, "shape": [3]}}, bytes(8)),
        _header({"a": _TENSOR, "b": _TENSOR}, bytes(8)),
    ],
    ids=["empty", "short", "huge", "cut", "missing", "surplus", "outside", "shape", "overlap"],
)
def test_unsound_safetensors(make_checkpoint: Callable[..., Path], content: bytes) -> None:
    directory = make_checkpoint()
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceRefusedError, match=r"model.safetensors of origin is not sound"):
        check(directory, "origin")


def test_safetensors_without_tensors(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "model.safetensors").write_bytes(_header({}, b""))
    with pytest.raises(SourceRefusedError, match="no tensors"):
        check(directory, "origin")
