"""What the store holds: finding, verifying, mending and removing models."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.errors import DamagedModelError, InvalidSourceError, StorageError
from argosy_services.models.integrity import Damage, Difference
from argosy_services.models.progress import Stage
from argosy_services.models.store import ModelStore
from argosy_services.models.types import LocalModel


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def source(make_checkpoint: Callable[..., Path]) -> str:
    return make_checkpoint().as_uri()


@pytest.fixture
def model(store: ModelStore, source: str) -> LocalModel:
    return store.pull(source)


@pytest.mark.parametrize("name", ["absent", "", ".", "..", "../models", "a/b", "/etc", ".staging", "x" * 300, "a\0b"])
def test_unknown_names(store: ModelStore, model: LocalModel, name: str) -> None:
    for call in (store.get, store.pull, store.verify, store.remove):
        with pytest.raises(
            ArgosyError, match=r"known: all-minilm-l6-v2, smollm2-135m-instruct, tiny.*argosy models pull"
        ) as e:
            call(name)
        assert e.value.reason is Reason.MODEL_NOT_FOUND


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "hf://ship/tiny", "file:///srv/tiny2"])
def test_known_but_not_pulled(store: ModelStore, name: str) -> None:
    with pytest.raises(ArgosyError, match=f"not on this machine; run `argosy models pull {name}`") as caught:
        store.get(name)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert caught.value.metadata["model"] == name


def test_unreadable_source(store: ModelStore) -> None:
    with pytest.raises(InvalidSourceError):
        store.get("ftp://a/b")


def test_the_fingerprint_is_that_of_sha256sum(model: LocalModel) -> None:
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    sums = "".join(f"{hashlib.sha256((model.path / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert model.fingerprint == hashlib.sha256(sums.encode()).hexdigest()
    assert model.size_bytes == sum((model.path / name).stat().st_size for name in names)


def test_the_fingerprint_depends_on_content_and_names_only(
    tmp_path: Path, make_checkpoint: Callable[..., Path], model: LocalModel
) -> None:
    same, other = make_checkpoint("same"), make_checkpoint("other", seed=1)
    store = ModelStore(tmp_path / "second")
    assert store.pull(same.as_uri()).fingerprint == model.fingerprint
    assert store.pull(other.as_uri()).fingerprint != model.fingerprint


def test_lists_models_by_name(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    assert store.list() == []
    pulled = [store.pull(make_checkpoint(name).as_uri()) for name in ("b", "a")]
    (pulled[0].path.parent / "stranger").mkdir()
    assert [model.name for model in store.list()] == ["a", "b"]


def test_a_damaged_manifest_hides_no_other_model(store: ModelStore, make_checkpoint: Callable[..., Path]) -> None:
    broken, sound = (store.pull(make_checkpoint(name).as_uri()) for name in ("broken", "sound"))
    (broken.path / "argosy.json").write_text("{")
    assert [model.name for model in store.list()] == ["sound"]
    assert store.get(sound.name) == sound


def test_verify_finds_a_flipped_bit(store: ModelStore, model: LocalModel) -> None:
    weights = model.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    assert store.verify("tiny") == [Difference("model.safetensors", Damage.CONTENT)]
    assert store.get("tiny") == model  # sizes and presence only


def test_verify_names_every_difference(store: ModelStore, model: LocalModel) -> None:
    (model.path / "config.json").unlink()
    (model.path / "tokenizer.json").write_text("{}")
    (model.path / "extra.txt").write_text("")
    assert [str(difference) for difference in store.verify("tiny")] == [
        "config.json is missing",
        "tokenizer.json has another size",
        "extra.txt is not part of the model",
    ]


def test_verify_reports_its_progress(store: ModelStore, model: LocalModel) -> None:
    seen: list[tuple[Stage, int, int]] = []
    assert store.verify("tiny", lambda stage, done, total: seen.append((stage, done, total))) == []
    assert seen[0] == (Stage.CHECKING, 0, model.size_bytes)
    assert seen[-1] == (Stage.CHECKING, model.size_bytes, model.size_bytes)


def test_visible_damage_is_named_and_mended(store: ModelStore, model: LocalModel, source: str) -> None:
    (model.path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedModelError, match=r"model.safetensors has another size; run `argosy models remove tiny`"):
        store.get("tiny")

    assert store.pull(source) == model
    assert store.verify("tiny") == []


def test_a_link_in_place_of_a_file_is_damage(store: ModelStore, model: LocalModel, tmp_path: Path) -> None:
    config = model.path / "config.json"
    config.rename(tmp_path / "elsewhere.json")
    config.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DamagedModelError, match=r"config.json is missing"):
        store.get("tiny")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"files": {}},
        {"files": [{"name": "../x", "size": 1, "sha256": "0"}]},
        {"fingerprint": "0" * 64},
        {"files": [{"name": "config.json"}]},
    ],
)
def test_a_manifest_that_was_tampered_with(store: ModelStore, model: LocalModel, change: dict[str, object]) -> None:
    path = model.path / "argosy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedModelError, match="cannot be read"):
        store.get("tiny")


def test_remove(store: ModelStore, model: LocalModel, tmp_path: Path) -> None:
    store.remove("tiny")
    assert not model.path.exists()
    assert list((tmp_path / "models" / ".staging").iterdir()) == []
    with pytest.raises(ArgosyError, match="not in the model store"):
        store.remove("tiny")


def test_remove_of_a_model_with_a_damaged_manifest(store: ModelStore, model: LocalModel) -> None:
    (model.path / "argosy.json").write_text("{")
    store.remove("tiny")
    assert not model.path.exists()


def test_get_is_fast_and_touches_no_weights(store: ModelStore, model: LocalModel) -> None:
    (model.path / "model.safetensors").chmod(0)
    started = time.perf_counter()
    store.get("tiny")
    assert time.perf_counter() - started < 0.1


def test_files_can_be_read_by_other_users(model: LocalModel) -> None:
    assert {path.stat().st_mode & 0o777 for path in model.path.iterdir()} == {0o644}
    assert model.path.stat().st_mode & 0o777 == 0o755


def test_a_disk_in_the_way(tmp_path: Path, source: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written.*ARGOSY_DATA_DIR"):
        ModelStore(tmp_path / "file").pull(source)
