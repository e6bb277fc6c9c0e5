"""Source URIs and paths: what is read, what is refused, and that nothing escapes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.models.catalogue import CATALOGUE
from argosy_services.models.errors import InvalidSourceError, SourceRefusedError
from argosy_services.models.sources import (
    NAME_PATTERN,
    FileSource,
    HubSource,
    WheelSource,
    member_path,
    parse_source,
)

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("hf://Org/Model-1.5", HubSource("Org/Model-1.5", "main"), "Org--Model-1.5"),
        ("hf://org/m@refs/pr/3", HubSource("org/m", "refs/pr/3"), "org--m"),
        ("file:///srv/models/tiny", FileSource(Path("/srv/models/tiny")), "tiny"),
        ("file:///srv/a%20b/Tiny.Q4_0.gguf", FileSource(Path("/srv/a b/Tiny.Q4_0.gguf")), "Tiny.Q4_0"),
        ("wheel://My_Pkg==1.0/pkg/model", WheelSource("My_Pkg", "1.0", PurePosixPath("pkg/model")), "my-pkg"),
        (
            f"wheel://p==1.0+cpu/p/m.gguf#sha256={DIGEST}",
            WheelSource("p", "1.0+cpu", PurePosixPath("p/m.gguf"), DIGEST),
            "p",
        ),
    ],
)
def test_reads_a_source(text: str, source: object, name: str) -> None:
    parsed = parse_source(text)
    assert parsed == source
    assert parsed.name == name
    assert parse_source(parsed.uri) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "http://example.org/model",
        "://",
        "hf://model",
        "hf://a/b/c",
        "hf://../b",
        "hf://a--b/c",
        "hf://a/b@",
        "hf://a/b@../../x",
        "hf://a/b@-x",
        "file://host/srv/model",
        "file://srv",
        "file:///",
        "file:///srv/../etc/model",
        "file:///srv/%2e%2e/model",
        "file:///srv/bad name",
        "file:///srv/model?x=1",
        "file:///srv/.hidden",
        "wheel://p/m",
        "wheel://p==1.0",
        "wheel://p==1.0/",
        "wheel://-p==1.0/m",
        "wheel://p==--index-url/m",
        "wheel://p==1.0/../m",
        "wheel://p==1.0/%2e%2e/m",
        "wheel://p==1.0//etc/m",
        "wheel://p==1.0/m#sha256=abc",
        "wheel://p==1.0/m#md5=" + DIGEST,
        f"wheel://p==1.0/m#sha256={DIGEST}&x",
    ],
)
def test_refuses_what_it_cannot_read(text: str) -> None:
    with pytest.raises(InvalidSourceError, match="source '"):
        parse_source(text)


@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_is_a_source_with_a_safe_name_or_an_error(text: str) -> None:
    for scheme in ("hf://", "file://", "wheel://", ""):
        try:
            name = parse_source(scheme + text).name
        except InvalidSourceError:
            continue
        assert NAME_PATTERN.fullmatch(name)


@given(st.text(alphabet=st.sampled_from("ab./\\:\0\n\ud800 .."), max_size=12))
def test_a_member_path_never_leaves_its_directory(name: str) -> None:
    try:
        path = member_path(name)
    except SourceRefusedError:
        return
    assert (Path("/root/dir") / path).resolve().is_relative_to("/root/dir/")
    assert str(path) == name


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/../b", "..", "a//b", "a/", "./a", "C:\\a", "a\\b", "a\0", "x" * 256]
)
def test_unsafe_member_paths_are_refused(name: str) -> None:
    with pytest.raises(SourceRefusedError, match="unsafe path"):
        member_path(name)


def test_every_known_model_is_pinned() -> None:
    for name, entry in CATALOGUE.items():
        assert NAME_PATTERN.fullmatch(name)
        assert isinstance(entry.source, WheelSource)
        assert entry.source.sha256 is not None
