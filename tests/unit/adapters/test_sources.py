"""Sources from callers: by their form, by their place, and by what really lies there."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.adapters.sources import FILES, AdapterSources, FetchCancelled
from argosy_services.errors import ArgosyError, Reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def sources(root: Path) -> AdapterSources:
    return AdapterSources([root], max_size_bytes=10_000)


@pytest.fixture
def adapter(root: Path, write_adapter: Any) -> Path:
    return write_adapter("a", root=root)


def fetch(sources: AdapterSources, directory: Path, target: Path) -> list[str]:
    target.mkdir()
    sources.fetch(sources.resolve(f"file://{directory}"), target, threading.Event())
    return sorted(entry.name for entry in target.iterdir())


def refusal(sources: AdapterSources, source: str) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        sources.resolve(source)
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert caught.value.metadata["field"] == "source"
    return caught.value


def failure(sources: AdapterSources, directory: Path, target: Path) -> str:
    with pytest.raises(ArgosyError) as caught:
        fetch(sources, directory, target)
    assert caught.value.reason is Reason.ADAPTER_INVALID
    return caught.value.message


def test_the_two_files_are_copied_and_nothing_else(sources: AdapterSources, adapter: Path, tmp_path: Path) -> None:
    (adapter / "README.md").write_text("x")
    (adapter / "adapter_model.bin").write_bytes(b"x")
    assert fetch(sources, adapter, tmp_path / "copy") == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "copy" / name).read_bytes() == (adapter / name).read_bytes()


@pytest.mark.parametrize(
    "form",
    [
        "",
        "{root}/a",
        "FILE://{root}/a",
        "file:{root}/a",
        "file://a",
        "file://host{root}/a",
        "file://localhost{root}/a",
        "http://host/a",
        "hf://owner/name",
        "file://{root}/a/../a",
        "file://{root}/../root/a",
        "file://{root}/./a",
        "file://{root}//a",
        "file:////{root}/a",
        "file://{root}/%61",
        "file://{root}/%2e%2e/root/a",
        "file://{root}/a?x",
        "file://{root}/a#x",
        "file://{root}\\a",
        "file://{root}/a\x00",
        "file://{root}/a\n",
        "file://" + "/a" * 3000,
    ],
)
def test_every_other_form_is_refused(sources: AdapterSources, adapter: Path, root: Path, form: str) -> None:
    refusal(sources, form.replace("{root}", str(root)))


def test_a_trailing_slash_means_the_same(sources: AdapterSources, adapter: Path) -> None:
    assert sources.resolve(f"file://{adapter}/") == sources.resolve(f"file://{adapter}")


def test_a_place_outside_the_roots_is_refused_alike_whether_it_exists(
    sources: AdapterSources, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "rootless").mkdir()
    (there, missing) = (f"file://{tmp_path}/outside", f"file://{tmp_path}/nowhere")
    message = refusal(sources, there).message.replace(there, "...")
    assert message == refusal(sources, missing).message.replace(missing, "...")
    refusal(sources, f"file://{tmp_path}/rootless")  # begins with the same letters as the root
    refusal(sources, f"file://{root}")
    refusal(sources, "file:///")
    assert str(root) not in message


def test_links_are_followed_only_within_the_roots(
    sources: AdapterSources, adapter: Path, root: Path, tmp_path: Path, write_adapter: Any
) -> None:
    write_adapter("elsewhere")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "in").symlink_to(adapter)
    (root / "loop").symlink_to(root / "loop")
    refusal(sources, f"file://{root}/out")
    refusal(sources, f"file://{root}/loop/a")
    assert fetch(sources, root / "in", tmp_path / "copy") == sorted(FILES)


def test_a_root_behind_a_link_is_a_root(adapter: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    sources = AdapterSources([tmp_path / "alias"], 10_000)
    assert fetch(sources, tmp_path / "alias" / "a", tmp_path / "copy") == sorted(FILES)


@pytest.mark.parametrize("swapped", ["", "deep"])
def test_a_directory_swapped_for_a_link_after_the_check_is_not_followed(
    sources: AdapterSources, root: Path, tmp_path: Path, write_adapter: Any, swapped: str
) -> None:
    write_adapter("a", root=root / "deep")
    write_adapter("deep/a", root=tmp_path / "secret")
    source = sources.resolve(f"file://{root}/deep/a")
    target = root / "deep" if swapped else root / "deep" / "a"
    target.rename(tmp_path / "gone")
    target.symlink_to(tmp_path / "secret" / "deep" / ("" if swapped else "a"))
    (tmp_path / "copy").mkdir()
    with pytest.raises(ArgosyError) as caught:
        sources.fetch(source, tmp_path / "copy", threading.Event())
    assert caught.value.reason is Reason.ADAPTER_INVALID
    assert list((tmp_path / "copy").iterdir()) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["missing", "link", "pipe", "directory"])
def test_files_that_are_none_fail(sources: AdapterSources, adapter: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = adapter / name
    path.rename(tmp_path / name)
    if kind == "link":
        path.symlink_to(tmp_path / name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert name in failure(sources, adapter, tmp_path / "copy")


def test_a_pickle_is_named_and_not_opened(sources: AdapterSources, adapter: Path, tmp_path: Path) -> None:
    (adapter / FILES[1]).unlink()
    os.mkfifo(adapter / "adapter_model.bin")  # opening it would wait for ever
    message = failure(sources, adapter, tmp_path / "copy")
    assert "adapter_model.bin is a pickle" in message
    assert FILES[1] in message


def test_a_missing_directory_fails(sources: AdapterSources, root: Path, tmp_path: Path) -> None:
    assert "No such file" in failure(sources, root / "nothing", tmp_path / "copy")


def test_a_file_for_a_directory_fails(sources: AdapterSources, adapter: Path, tmp_path: Path) -> None:
    assert "Not a directory" in failure(sources, adapter / FILES[0], tmp_path / "copy")


@pytest.mark.parametrize("name", FILES)
def test_too_large_a_file_fails(sources: AdapterSources, adapter: Path, tmp_path: Path, name: str) -> None:
    (adapter / name).write_bytes(bytes(10_001))
    assert "more than 10000 bytes" in failure(sources, adapter, tmp_path / "copy")


def test_the_bound_is_on_both_files_together(sources: AdapterSources, adapter: Path, tmp_path: Path) -> None:
    (adapter / FILES[0]).write_bytes(bytes(5_000))
    (adapter / FILES[1]).write_bytes(bytes(5_001))
    failure(sources, adapter, tmp_path / "copy")
    (adapter / FILES[1]).write_bytes(bytes(5_000))
    assert fetch(sources, adapter, tmp_path / "copy2") == sorted(FILES)


def test_a_sparse_giant_is_refused_before_it_is_written(root: Path, adapter: Path, tmp_path: Path) -> None:
    os.truncate(adapter / FILES[1], 1 << 40)
    sources = AdapterSources([root], max_size_bytes=3 << 20)
    failure(sources, adapter, tmp_path / "copy")
    assert (tmp_path / "copy" / FILES[1]).stat().st_size <= 3 << 20


def test_copying_stops_when_it_is_cancelled(sources: AdapterSources, adapter: Path, tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    (tmp_path / "copy").mkdir()
    with pytest.raises(FetchCancelled):
        sources.fetch(sources.resolve(f"file://{adapter}"), tmp_path / "copy", cancelled)


def test_no_handle_stays_open(sources: AdapterSources, adapter: Path, root: Path, tmp_path: Path) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    fetch(sources, adapter, tmp_path / "copy")
    (adapter / FILES[1]).unlink()
    failure(sources, adapter, tmp_path / "copy2")
    failure(sources, root / "nothing", tmp_path / "copy3")
    assert handles() == before


@given(st.text(max_size=60).map(lambda text: f"file:///{text}") | st.text(max_size=60))
def test_no_text_leads_out_of_the_roots(text: str) -> None:
    sources = AdapterSources([Path("/nonexistent-root")], 1)
    try:
        directory = sources.resolve(text)
    except ArgosyError as error:
        reason = error.reason
    else:
        reason = None
        assert (directory.root / directory.relative).resolve().is_relative_to("/nonexistent-root")
    assert reason in (None, Reason.SOURCE_REFUSED)
