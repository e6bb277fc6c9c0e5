"""What generation asks of its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from argosy_services.generation.explanation import Explanation


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use an adapter: `key` names it in the engine, `version` is its content hash.

    While a lease is out, the adapter stays in the engine.
    """

    name: str
    key: str
    version: str


class AdapterLeases(Protocol):
    """Gives leases. Filled by the adapter registry."""

    def lease(
        self, name: str, on_revoke: Callable[[], None], sticky_key: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """A lease for the length of an `async with` block. An adapter that is not in an engine is put there first.

        `name` is that of an adapter, a version, or an alias; requests with one `sticky_key` get the same version of an
        alias. Raises ADAPTER_NOT_FOUND, ALIAS_NOT_FOUND or ADAPTER_NOT_READY. `on_revoke` is called, on the event
        loop's thread, when the adapter must leave and its drain deadline has passed: the holder then ends its sequences
        with ADAPTER_NOT_READY.
        """
        ...


class ExplainingPeers(Protocol):
    """The other processes of a fleet that answer requests of the same service."""

    async def explain(self, request_id: str, tenant: str) -> Explanation | None:
        """What the first of them knows of a request of this tenant; None where none does."""
        ...
