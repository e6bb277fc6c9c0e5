"""Keys."""

from __future__ import annotations

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer second-key"])
def test_any_of_the_keys_is_enough(header: str) -> None:
    Authenticator(["first-key", "second-key"]).check(Call("id", None, {"authorization": header}))


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer first", "Basic first-key", "first-key"])
def test_nothing_else_is(header: str) -> None:
    with pytest.raises(ArgosyError) as caught:
        Authenticator(["first-key"]).check(Call("id", None, {"authorization": header}))
    assert caught.value.reason is Reason.INVALID_CREDENTIALS
    assert "first-key" not in caught.value.message


def test_without_keys_everybody_may() -> None:
    Authenticator().check(Call("id", None, {}))
