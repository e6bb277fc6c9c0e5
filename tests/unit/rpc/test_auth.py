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


def test_calls_with_one_key_are_one_tenant_in_every_process() -> None:
    def tenant(keys: list[str], header: str) -> str:
        return Authenticator(keys).check(Call("id", None, {"authorization": f"Bearer {header}"})).tenant

    first, second = tenant(["first-key", "second-key"], "first-key"), tenant(["first-key", "second-key"], "second-key")
    assert first != second
    assert first == tenant(["other-key", "first-key"], "first-key")
    # Whoever sees it learns nothing of the key.
    assert len(first) == 32
    assert "first-key" not in first
    assert Authenticator().check(Call("id", None, {"authorization": "Bearer whatever"})).tenant == ""


@pytest.mark.parametrize(("key", "may"), [("first-key", False), ("second-key", True)])
def test_some_keys_may_raise_their_priority(key: str, may: bool) -> None:
    auth = Authenticator(["first-key", "second-key"], priority_keys=["second-key"])
    assert auth.check(Call("id", None, {"authorization": f"Bearer {key}"})).may_raise_priority is may


def test_without_keys_everybody_may_raise_it() -> None:
    assert Authenticator().check(Call("id", None, {})).may_raise_priority
    assert not Call("id", None, {}).may_raise_priority
