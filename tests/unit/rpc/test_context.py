"""What is read from the context of a call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from argosy_services.rpc.context import Call, open_call


class RayContext:
    """What Ray Serve's context offers: metadata, but no deadline."""

    def __init__(self, **metadata: Any) -> None:
        self._metadata = [(key.replace("_", "-"), value) for key, value in metadata.items()]

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._metadata


def test_the_deadline_header_stands_in_where_the_runtime_has_none() -> None:
    call = open_call(RayContext(x_argosy_timeout_ms="1500"))
    assert call.deadline is not None
    assert 1.4 < call.deadline - time.monotonic() <= 1.5


@pytest.mark.parametrize("header", ["", "-1", "1.5", "soon", "²", "9" * 5000, "٣"])
def test_a_header_that_is_no_number_is_no_deadline(header: str) -> None:
    assert open_call(RayContext(x_argosy_timeout_ms=header)).deadline is None


def test_binary_metadata_is_left_out() -> None:
    assert open_call(RayContext(a="text", b_bin=b"\xff")).metadata == {"a": "text"}


def test_nothing_remains_after_the_deadline() -> None:
    assert Call("id", time.monotonic() - 1, {}).remaining() == 0
    assert Call("id", None, {}).remaining() is None
