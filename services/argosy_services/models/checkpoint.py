"""Which files of a checkpoint are taken, and whether what was taken is one that can be served."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from argosy_services.models.errors import SourceRefusedError
from argosy_services.models.manifest import MANIFEST_NAME
from argosy_services.models.sources import member_path

INDEX_NAME = "model.safetensors.index.json"

_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".jinja"})
_NAMES = frozenset({"tokenizer.model"})
_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def select(names: Iterable[PurePosixPath], origin: str) -> list[PurePosixPath]:
    """The files of a source that are taken, in the order of their names: weights, configuration and tokenizer.

    Hidden directories are left out, and so is `consolidated.safetensors`, which repeats the weights in another form.
    Raises SourceRefusedError where no safetensors are among them.
    """
    offered = list(names)
    taken = sorted(name for name in offered if _is_wanted(name))
    weights = [name for name in taken if name.suffix == ".safetensors"]
    if not weights:
        _refuse_weightless(offered, origin)
    if any(not _is_consolidated(name) for name in weights):
        taken = [name for name in taken if not _is_consolidated(name)]
    return taken


def check(directory: Path, origin: str) -> None:
    """Raises SourceRefusedError where a directory is no checkpoint that can be served.

    There must be `config.json`, `tokenizer.json` and safetensors whose headers are sound and lie within their
    files; a shard index may only name files that are there.
    """
    config = _read_object(directory, "config.json", origin)
    if not isinstance(config.get("model_type"), str):
        raise SourceRefusedError(f"config.json of {origin} names no model_type; it is not a transformers checkpoint")
    tokenizer = _read_object(directory, "tokenizer.json", origin)
    if "model" not in tokenizer:
        raise SourceRefusedError(f"tokenizer.json of {origin} has no model; save the tokenizer again with tokenizers")
    for path in sorted(directory.rglob("*.safetensors")):
        _check_header(path, path.relative_to(directory), origin)
    if (directory / INDEX_NAME).exists():
        _check_index(directory, origin)


def _is_wanted(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") and part != ".." for part in name.parts)
    if hidden or str(name) == MANIFEST_NAME:
        return False
    return name.suffix in _SUFFIXES or name.name in _NAMES


def _is_consolidated(name: PurePosixPath) -> bool:
    return name.name.startswith("consolidated") and name.suffix == ".safetensors"


def _refuse_weightless(offered: list[PurePosixPath], origin: str) -> None:
    pickles = sorted(str(name) for name in offered if name.suffix in _PICKLES)
    if pickles:
        raise SourceRefusedError(
            f"{origin} has its weights only as pickle ({', '.join(pickles[:3])}), which can run code when it is read, "
            "and is not taken; ask for a revision with safetensors, or convert it with safetensors.torch.save_file"
        )
    raise SourceRefusedError(f"{origin} holds no *.safetensors; name a directory that holds a checkpoint")


def _read_object(directory: Path, name: str, origin: str) -> dict[str, object]:
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "; save its fast tokenizer with transformers" if name == "tokenizer.json" else ""
        raise SourceRefusedError(f"{origin} has no {name}{hint}") from error
    except ValueError as error:
        raise SourceRefusedError(f"{name} of {origin} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceRefusedError(f"{name} of {origin} is not a JSON object")
    return content


def _check_header(path: Path, name: Path, origin: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            tensors = len(file.keys())
    except SafetensorError as error:
        raise SourceRefusedError(f"{name} of {origin} is not sound safetensors ({error}); pull it again") from error
    if not tensors:
        raise SourceRefusedError(f"{name} of {origin} holds no tensors")


def _check_index(directory: Path, origin: str) -> None:
    shards = _read_object(directory, INDEX_NAME, origin).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise SourceRefusedError(f"{INDEX_NAME} of {origin} has no weight_map of names to files")
    for shard in sorted(set(shards.values())):
        if not (directory / member_path(shard)).is_file():
            raise SourceRefusedError(f"{INDEX_NAME} of {origin} names {shard}, which is not there")
