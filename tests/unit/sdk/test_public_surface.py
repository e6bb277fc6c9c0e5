"""What the package exports, and what importing it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
from pathlib import Path

import argosy
from argosy import errors
from argosy import types as argosy_types


def test_all_is_sorted_and_is_exactly_what_is_exported() -> None:
    exported = {
        name
        for name, value in vars(argosy).items()
        if not isinstance(value, types.ModuleType) and (not name.startswith("_") or name == "__version__")
    }
    assert argosy.__all__ == sorted(argosy.__all__)
    assert set(argosy.__all__) == exported


def test_every_exception_and_type_is_exported() -> None:
    exceptions = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == "argosy.errors"
    }
    assert exceptions <= set(argosy.__all__)
    assert set(argosy_types.__all__) <= set(argosy.__all__)


def test_public_classes_and_methods_are_documented() -> None:
    missing = []
    for name in argosy.__all__:
        value = getattr(argosy, name)
        if not inspect.isclass(value):
            continue
        members = [(f"{name}.{key}", member) for key, member in vars(value).items() if not key.startswith("_")]
        missing += [
            label
            for label, member in [(name, value), *members]
            if (inspect.isclass(member) or inspect.isfunction(member) or isinstance(member, property))
            and not inspect.getdoc(member)
        ]
    assert missing == []


def test_the_package_is_typed() -> None:
    assert (Path(argosy.__file__).parent / "py.typed").is_file()


def test_import_stays_light() -> None:
    heavy = {"torch", "numpy", "pydantic", "transformers", "argosy_services", "typer", "rich"}
    code = f"import sys, argosy; print(*({heavy!r} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""


def test_import_is_quick() -> None:
    code = "import time; start = time.process_time(); import argosy; print(time.process_time() - start)"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))
    assert seconds < 0.5
