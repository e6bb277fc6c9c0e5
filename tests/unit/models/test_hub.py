"""`hf://` against a hub on the loopback interface."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.errors import ChecksumError, DownloadError, NameTakenError, SourceRefusedError, StorageError
from argosy_services.models.manifest import read_manifest
from argosy_services.models.progress import Stage
from argosy_services.models.store import ModelStore

COMMIT = "1f" * 20
SOURCE = "hf://ship/tiny"


@pytest.fixture
def store(tmp_path: Path, hub) -> ModelStore:
    return ModelStore(tmp_path / "models", hub_endpoint=hub.endpoint)


def test_takes_the_wanted_files_at_the_resolved_commit(store: ModelStore, hub) -> None:
    model = store.pull(SOURCE)

    manifest = read_manifest(model.path)
    assert manifest is not None
    assert manifest.revision == COMMIT
    assert [file.name for file in manifest.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (model.name, model.source) == ("ship--tiny", "hf://ship/tiny@main")
    assert (model.path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert {name for name, _ in hub.downloads} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_present_model_is_found_without_the_hub(store: ModelStore, hub) -> None:
    model = store.pull(SOURCE)
    asked = hub.listings, len(hub.downloads)

    assert store.pull(SOURCE) == store.get("ship--tiny") == store.get(f"{SOURCE}@main") == model
    assert store.get(f"{SOURCE}@{COMMIT}") == model
    assert (hub.listings, len(hub.downloads)) == asked


def test_another_revision_needs_the_name_to_be_free(store: ModelStore, hub) -> None:
    hub.revisions["v2"] = COMMIT
    store.pull(SOURCE)

    with pytest.raises(NameTakenError, match="argosy models remove ship--tiny"):
        store.pull(f"{SOURCE}@v2")
    store.remove("ship--tiny")
    assert store.pull(f"{SOURCE}@v2").source == "hf://ship/tiny@v2"


def test_hf_endpoint_is_honoured(tmp_path: Path, hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    assert ModelStore(tmp_path / "models").pull(SOURCE).name == "ship--tiny"


def test_pickled_weights_are_refused_before_anything_is_downloaded(store: ModelStore, hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]

    with pytest.raises(SourceRefusedError, match=r"only as pickle \(pytorch_model.bin\).*safetensors"):
        store.pull(SOURCE)
    assert hub.downloads == []
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_second_copy_of_the_weights_is_left_out(store: ModelStore, hub) -> None:
    hub.files["consolidated.safetensors"] = hub.files["model.safetensors"]
    store.pull(SOURCE)
    assert "consolidated.safetensors" not in {name for name, _ in hub.downloads}


def test_a_broken_connection_goes_on_from_its_byte(store: ModelStore, hub, make_checkpoint) -> None:
    hub.offer(make_checkpoint("large", rows=1024, width=3072))  # above 10 MiB, the library's unit of progress
    hub.cut_once_after["model.safetensors"] = 11 << 20
    seen: list[tuple[int, int]] = []

    model = store.pull(
        SOURCE, lambda stage, done, total: seen.append((done, total)) if stage == Stage.DOWNLOADING else None
    )

    ranges = [asked for name, asked in hub.downloads if name == "model.safetensors"]
    assert ranges == [None, f"bytes={10 << 20}-"]
    assert (model.path / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    total = sum(len(hub.files[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert seen[-1] == (total, total)


def test_a_killed_pull_leaves_nothing_that_looks_complete_and_is_resumed(
    store: ModelStore, hub, tmp_path: Path, pull_process
) -> None:
    hub.gates["tokenizer.json"] = threading.Event()
    process = pull_process(tmp_path / "models", SOURCE, endpoint=hub.endpoint)
    hub.wait_until_asked_for("tokenizer.json")
    process.kill()

    with pytest.raises(ArgosyError, match="argosy models pull") as caught:
        store.get(SOURCE)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert store.list() == []
    hub.gates["tokenizer.json"].set()
    hub.downloads.clear()

    model = store.pull(SOURCE)

    assert [name for name, _ in hub.downloads] == ["tokenizer.json"]
    assert store.verify(model.name) == []
    assert list((tmp_path / "models" / ".staging").iterdir()) == []


def test_two_processes_do_the_work_once(store: ModelStore, hub, tmp_path: Path, pull_process) -> None:
    hub.gates["config.json"] = threading.Event()
    first = pull_process(tmp_path / "models", SOURCE, endpoint=hub.endpoint)
    first.wait_for("DOWNLOADING")
    second = pull_process(tmp_path / "models", SOURCE, endpoint=hub.endpoint)
    second.wait_for("WAITING")
    hub.gates["config.json"].set()

    results = [first.end(), second.end()]

    assert results == [(0, store.get(SOURCE).fingerprint)] * 2
    assert hub.listings == 1
    assert sorted(name for name, _ in hub.downloads) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_content_that_is_not_the_listed_one_is_not_kept(store: ModelStore, hub, tmp_path: Path, name: str) -> None:
    sent = hub.files[name]
    hub.listed_as[name] = hashlib.sha256(sent).digest().ljust(len(sent), b"\0")

    with pytest.raises(ChecksumError, match=name):
        store.pull(SOURCE)
    assert list((tmp_path / "models" / ".staging").iterdir()) == []

    hub.listed_as.clear()
    assert store.verify(store.pull(SOURCE).name) == []


def test_what_cannot_fit_is_not_begun(store: ModelStore, hub) -> None:
    hub.claimed_sizes["model.safetensors"] = 1 << 60
    with pytest.raises(StorageError, match="free some, or set ARGOSY_DATA_DIR"):
        store.pull(SOURCE)
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("source", "said"),
    [("hf://ship/absent", "Repository Not Found"), ("hf://ship/tiny@absent", "Revision Not Found")],
)
def test_what_the_hub_does_not_have(store: ModelStore, source: str, said: str) -> None:
    with pytest.raises(DownloadError, match=f"{said}.*HF_TOKEN"):
        store.pull(source)


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", hub_endpoint="http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        store.pull(SOURCE)


@pytest.mark.parametrize("name", ["../escape.json", "/etc/escape.json", "a/../../escape.json"])
def test_hostile_names_in_a_listing_are_refused(store: ModelStore, hub, name: str) -> None:
    hub.files[name] = b"{}"
    with pytest.raises(SourceRefusedError, match="unsafe path"):
        store.pull(SOURCE)
    assert hub.downloads == []


def test_a_hostile_commit_is_refused(store: ModelStore, hub) -> None:
    hub.revisions["main"] = "../../../outside"
    with pytest.raises(DownloadError, match="names no commit"):
        store.pull(SOURCE)
