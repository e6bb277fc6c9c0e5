"""Adapters in object stores, through fsspec's store in memory: which places are taken, and what may be there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from argosy_services.adapters.remotes import RemoteSources
from argosy_services.adapters.sources import FILES, FetchCancelled
from argosy_services.errors import ArgosyError, Reason
from argosy_services.settings import AdapterSettings

LIMIT = 100_000


@pytest.fixture
def store(write_adapter: Any) -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    directory = write_adapter()
    for name in FILES:
        system.pipe(f"/bucket/adapters/good/{name}", (directory / name).read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def sources() -> RemoteSources:
    return RemoteSources(["memory://bucket/adapters", "hf://my-org/"], LIMIT)


def fetch(sources: RemoteSources, source: str, target: Path) -> None:
    sources.fetch(sources.resolve(source), target, threading.Event())


def test_files_are_copied_as_they_are(sources: RemoteSources, store: Any, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    fetch(sources, "memory://bucket/adapters/good/", target)
    for name in FILES:
        assert (target / name).read_bytes() == store.cat(f"/bucket/adapters/good/{name}")


@pytest.mark.parametrize("source", ["memory://bucket/adapters/a", "hf://my-org/name", "hf://my-org/name@v1.0"])
def test_places_that_are_taken(sources: RemoteSources, source: str) -> None:
    assert sources.resolve(source).uri == source


@pytest.mark.parametrize(
    "source",
    [
        "memory://bucket/other/a",
        "memory://bucket/adapters",
        "memory://bucket/adaptersx/a",
        "memory://bucket/adapters/../secret",
        "memory://bucket/adapters/./a",
        "memory://bucket/adapters//a",
        "memory://bucket/adapters/%2e%2e/a",
        "memory://bucket/adapters/a?versionId=1",
        "memory://bucket/adapters/a::file:///etc",
        "simplecache::memory://bucket/adapters/a",
        "hf://other-org/name",
        "hf://my-org-2/name",
        "http://169.254.169.254/latest",
        "memory://",
        "://x",
    ],
)
def test_places_that_are_not(sources: RemoteSources, source: str) -> None:
    with pytest.raises(ArgosyError) as caught:
        sources.resolve(source)
    assert caught.value.reason is Reason.SOURCE_REFUSED


def test_nothing_is_taken_where_nothing_was_allowed() -> None:
    with pytest.raises(ArgosyError):
        RemoteSources([], LIMIT).resolve("memory://bucket/adapters/good")


def test_what_is_missing_or_too_large_or_cannot_be_reached_is_told(
    sources: RemoteSources, store: Any, tmp_path: Path
) -> None:
    store.pipe(f"/bucket/adapters/large/{FILES[0]}", b"{}")
    store.pipe(f"/bucket/adapters/large/{FILES[1]}", bytes(LIMIT))
    unknown = RemoteSources(["nosuchstore://bucket/"], LIMIT)
    cases = (
        (sources, "memory://bucket/adapters/nothing", "these two files"),
        (sources, "memory://bucket/adapters/large", f"more than {LIMIT} bytes"),
        (unknown, "nosuchstore://bucket/a", "install the package"),
    )
    for number, (each, source, said) in enumerate(cases):
        target = tmp_path / str(number)
        target.mkdir()
        with pytest.raises(ArgosyError) as caught:
            fetch(each, source, target)
        assert caught.value.reason is Reason.ADAPTER_INVALID
        assert said in caught.value.message


def test_a_fetch_can_be_cancelled(sources: RemoteSources, store: Any, tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(FetchCancelled):
        sources.fetch(sources.resolve("memory://bucket/adapters/good"), tmp_path, cancelled)


@pytest.mark.parametrize("place", ["/srv/adapters", "file:///srv", "local:///srv", "s3://a::file:///", "S3://x/", "x"])
def test_settings_name_remote_places_only(place: str) -> None:
    with pytest.raises(ValueError, match=r"adapters\.remotes"):
        AdapterSettings(remotes=(place,))


def test_settings_take_remote_places() -> None:
    assert AdapterSettings(remotes=("s3://bucket/a/", "hf://my-org/")).remotes == ("s3://bucket/a/", "hf://my-org/")
