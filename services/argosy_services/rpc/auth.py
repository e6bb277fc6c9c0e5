"""Who may call: one or more API keys, or everybody on a loopback server without keys."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc.context import Call


class Authenticator:
    """Checks the `authorization: Bearer <key>` metadata of calls. Without keys every call passes."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._keys = [key.encode() for key in keys]

    def check(self, call: Call) -> None:
        """Raises INVALID_CREDENTIALS unless the call carries one of the keys."""
        if not self._keys:
            return
        scheme, _, given = call.metadata.get("authorization", "").partition(" ")
        # Every key is compared, so that the time taken does not tell which one matched.
        matches = [hmac.compare_digest(key, given.encode()) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ArgosyError(
                Reason.INVALID_CREDENTIALS, "no valid API key: send 'authorization: Bearer <key>' with the call"
            )
