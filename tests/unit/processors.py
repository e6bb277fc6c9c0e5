"""Marks of tests that run on some kinds of processors only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from argosy_services.engine.torch_engine.native import is_supported

if TYPE_CHECKING:
    from argosy_services.engine.torch_engine.native.processor import Processor


def _reduces() -> bool:
    if not is_supported():
        return False
    # Imports llvmlite, which is not there on other systems.
    from argosy_services.engine.torch_engine.native.processor import host

    return host().reduced


REDUCED = pytest.mark.skipif(not _reduces(), reason="the kernels are for Linux on x86-64 with AVX2")
"""Of tests of types that take AVX2."""


def on(kind: Processor, *values: Any, name: str = "") -> Any:
    """A parameter of tests on a kind of processor: some values, or the kind itself."""
    mark = pytest.mark.skipif(not kind.is_here, reason=f"this processor is not {kind.name}")
    return pytest.param(*(values or (kind,)), marks=mark, id=name or kind.name)
