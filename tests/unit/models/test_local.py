"""`file://`: copies that are verified, and links and devices that are not followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from argosy_services.models.errors import DownloadError, NameTakenError, SourceRefusedError
from argosy_services.models.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_takes_a_copy(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    (directory / "notes.md").write_text("not needed")
    (directory / ".git").mkdir()
    (directory / ".git" / "config.json").write_text("{}")

    model = store.pull(directory.as_uri())
    (directory / "model.safetensors").write_bytes(b"rewritten by its owner")

    assert model.name == "tiny"
    assert store.verify("tiny") == []
    assert sorted(path.relative_to(model.path).as_posix() for path in model.path.rglob("*.json")) == [
        "1_Pooling/config.json",
        "argosy.json",
        "config.json",
        "tokenizer.json",
    ]
    assert not (model.path / "notes.md").exists()


def test_links_within_the_directory_become_files(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "blobs").mkdir()
    (directory / "model.safetensors").rename(directory / "blobs" / "weights")
    (directory / "model.safetensors").symlink_to("blobs/weights")

    model = store.pull(directory.as_uri())

    assert not (model.path / "model.safetensors").is_symlink()
    assert (model.path / "model.safetensors").stat().st_size > 0


def test_a_link_that_leaves_the_directory_is_refused(
    store: ModelStore, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    directory = make_checkpoint()
    (directory / "vocab.txt").symlink_to(secret)

    with pytest.raises(SourceRefusedError, match=r"vocab.txt .* leaves the directory; .*cp -rL"):
        store.pull(directory.as_uri())
    assert store.list() == []


def test_a_linked_directory_is_refused(store: ModelStore, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint()
    (directory / "sub").symlink_to(tmp_path)
    with pytest.raises(SourceRefusedError, match=r"sub .*link to a directory"):
        store.pull(directory.as_uri())


def test_a_pipe_is_refused_and_does_not_block(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    os.mkfifo(directory / "vocab.txt")
    with pytest.raises(SourceRefusedError, match="not a regular file"):
        store.pull(directory.as_uri())


def test_pickled_weights_are_refused(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(SourceRefusedError, match=r"only as pickle \(pytorch_model.bin\)"):
        store.pull(directory.as_uri())


def test_what_is_not_there(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="check the path"):
        store.pull(f"file://{tmp_path}/absent")
    with pytest.raises(DownloadError, match="check the path"):
        store.pull(f"file://{tmp_path}/absent.gguf")


def test_a_file_in_place_of_a_directory(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(DownloadError, match="check the path"):
        store.pull((make_checkpoint() / "config.json").as_uri())


def test_two_directories_of_one_name(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    store.pull(make_checkpoint("a/tiny").as_uri())
    with pytest.raises(NameTakenError, match="argosy models remove tiny"):
        store.pull(make_checkpoint("b/tiny").as_uri())


def test_a_directory_of_a_stranger_is_left_alone(
    store: ModelStore, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "precious.txt").write_text("mine")

    with pytest.raises(NameTakenError, match="move it away"):
        store.pull(make_checkpoint().as_uri())
    assert (tmp_path / "models" / "tiny" / "precious.txt").read_text() == "mine"
