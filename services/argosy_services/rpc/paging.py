"""Pages over ordered lists."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from argosy_services.errors import invalid_field

T = TypeVar("T")

_DEFAULT_SIZE = 100
_MAX_SIZE = 1000


def page(items: Sequence[T], name: Callable[[T], str], *, size: int, token: str) -> tuple[list[T], str]:
    """The next page of `items` and the token of the page after it (empty: there is none).

    The token names the last item sent, so that items which come or go between two pages shift nothing.
    """
    _check_size(size)
    after = _read(token)
    rest = sorted((item for item in items if after is None or name(item) > after), key=name)
    chosen = rest[: size or _DEFAULT_SIZE]
    return chosen, _write(name(chosen[-1])) if len(rest) > len(chosen) else ""


async def page_before(
    read: Callable[[str, int], Awaitable[list[T]]], name: Callable[[T], str], *, size: int, token: str
) -> tuple[list[T], str]:
    """A page of a list that is too long to be held: `read` gets the name of the last item sent and how many to read."""
    _check_size(size)
    wanted = size or _DEFAULT_SIZE
    items = await read(_read(token) or "", wanted + 1)
    chosen = items[:wanted]
    return chosen, _write(name(chosen[-1])) if len(items) > wanted else ""


def _check_size(size: int) -> None:
    if size > _MAX_SIZE:
        raise invalid_field("page_size", "is too large", limit=_MAX_SIZE, value=size)


def _write(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _read(token: str) -> str | None:
    if not token:
        return None
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise invalid_field(
            "page_token", "is not one that this server gave", limit="a page token", value=token
        ) from error
