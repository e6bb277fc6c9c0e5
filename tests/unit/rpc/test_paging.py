"""Pages over lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy_services.errors import ArgosyError
from argosy_services.rpc import paging

names = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=30)


@given(names, st.integers(1, 7))
def test_pages_hold_every_item_once_and_in_order(items: list[str], size: int) -> None:
    seen: list[str] = []
    token = ""
    while True:
        chosen, token = paging.page(items, str, size=size, token=token)
        seen += chosen
        if not token:
            break
        assert len(chosen) == size
    assert seen == sorted(items)


def test_items_that_come_and_go_shift_nothing() -> None:
    first, token = paging.page(["b", "d", "f"], str, size=2, token="")
    assert first == ["b", "d"]
    assert paging.page(["a", "c", "e", "f"], str, size=2, token=token) == (["e", "f"], "")


def test_without_a_size_a_page_holds_a_hundred() -> None:
    items = [f"{number:03}" for number in range(150)]
    assert len(paging.page(items, str, size=0, token="")[0]) == 100


@pytest.mark.parametrize("token", ["?", "é", "AA", "_w==", "a" * 5])
def test_foreign_tokens_are_refused(token: str) -> None:
    with pytest.raises(ArgosyError) as caught:
        paging.page(["a"], str, size=1, token=token)
    assert caught.value.metadata["field"] == "page_token"


def test_too_large_a_page_is_refused() -> None:
    with pytest.raises(ArgosyError) as caught:
        paging.page([], str, size=1001, token="")
    assert caught.value.metadata == {"field": "page_size", "limit": "1000", "value": "1001"}
