"""What is taken for granted about the library, against the stand-in, and against the library where it is present."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.engine.tensorrt_llm.conftest import needs_library

from argosy_services.engine.tensorrt_llm import library
from argosy_services.engine.tensorrt_llm.errors import LibraryError


@pytest.mark.usefixtures("control")
def test_the_stand_in_keeps_the_contract() -> None:
    """Fails when the stand-in lacks a parameter, a field or a default of contract.yaml."""
    assert library.differences(library.read_contract()) == []


@pytest.mark.gpu
@needs_library
def test_the_library_keeps_the_contract() -> None:
    assert library.differences(library.read_contract()) == []
    assert library.load_library().version == library.read_contract()["version"]


@pytest.mark.usefixtures("control")
@pytest.mark.parametrize(
    ("kind", "name", "key", "value"),
    [
        ("fields", "tensorrt_llm.SamplingParams", "max_tokens", 33),
        ("fields", "tensorrt_llm.SamplingParams", "best_seed", None),
        ("signatures", "tensorrt_llm.LLM.generate_async", "priority", None),
        ("signatures", "tensorrt_llm.LLM.get_stats_async", "timeout", 3),
        ("fields", "tensorrt_llm.llmapi.Missing", "x", None),
        ("exceptions", "tensorrt_llm.llmapi.RequestError", "x", None),
    ],
)
def test_every_difference_is_found(kind: str, name: str, key: str, value: Any) -> None:
    """Fails when `differences` skips a kind of entry."""
    contract = copy.deepcopy(library.read_contract())
    if kind == "exceptions":
        contract[kind][name] = "ValueError"
    else:
        contract[kind].setdefault(name, {})[key] = value
    assert library.differences(contract)


@pytest.mark.usefixtures("control")
def test_the_order_of_parameters_counts() -> None:
    """Fails when `_compare` leaves out the order."""
    contract = copy.deepcopy(library.read_contract())
    name = "tensorrt_llm.LLM.generate_async"
    contract["signatures"][name] = dict(reversed(contract["signatures"][name].items()))
    assert "order" in library.differences(contract)[0]


@pytest.mark.usefixtures("control")
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when `load_library` does not compare versions: the next minor version has no compiled engines."""
    import tensorrt_llm

    monkeypatch.setattr(tensorrt_llm, "__version__", "1.3.0")
    with pytest.raises(LibraryError, match=r"1\.3\.0; install 1\.2\.1"):
        library.load_library()


@pytest.mark.usefixtures("control")
def test_a_library_that_is_not_as_documented_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when `load_library` does not call `differences`."""
    import tensorrt_llm

    monkeypatch.delattr(tensorrt_llm.LLM.__mro__[1], "get_stats_async")
    with pytest.raises(LibraryError, match="get_stats_async"):
        library.load_library()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when the import is not guarded."""
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(LibraryError, match="install argosy"):
        library.load_library()


def test_only_one_module_imports_the_library() -> None:
    """Fails when any other module imports tensorrt_llm, which a machine without it could then not import."""
    folder = Path(library.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text()
        assert "import tensorrt_llm" not in text, path
        assert "from tensorrt_llm" not in text, path
