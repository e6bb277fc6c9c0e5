"""Who may call: one or more API keys, or everybody on a loopback server without keys."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace

from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc.context import Call
from argosy_services.settings import Settings


class Authenticator:
    """Checks the `authorization: Bearer <key>` metadata of calls. Without keys every call passes."""

    def __init__(self, keys: Sequence[str] = (), *, priority_keys: Sequence[str] = ()) -> None:
        """Calls with one of `priority_keys`, which are among the keys, may raise their priority."""
        self._keys = [key.encode() for key in keys]
        self._tenants = [_tenant(key) for key in self._keys]
        self._may_raise = [key in priority_keys for key in keys]

    @classmethod
    def of(cls, settings: Settings) -> Authenticator:
        """What the settings say."""
        return cls(
            [key.get_secret_value() for key in settings.api_keys],
            priority_keys=[key.get_secret_value() for key in settings.priority_keys],
        )

    def check(self, call: Call) -> Call:
        """The call, with who makes it. Raises INVALID_CREDENTIALS unless it carries one of the keys."""
        if not self._keys:
            return replace(call, may_raise_priority=True)
        scheme, _, given = call.metadata.get("authorization", "").partition(" ")
        # Every key is compared, so that the time taken does not tell which one matched.
        matches = [hmac.compare_digest(key, given.encode()) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ArgosyError(
                Reason.INVALID_CREDENTIALS, "no valid API key: send 'authorization: Bearer <key>' with the call"
            )
        found = matches.index(True)
        return replace(call, tenant=self._tenants[found], may_raise_priority=self._may_raise[found])


def _tenant(key: bytes) -> str:
    """The same in every process of a cluster; it never leaves them."""
    return hashlib.blake2b(key, digest_size=16, person=b"argosy tenant").hexdigest()
