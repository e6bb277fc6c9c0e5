"""What generation asks of its neighbours."""

from __future__ import annotations

from typing import Protocol

from argosy_services.generation.explanation import Explanation


class ExplainingPeers(Protocol):
    """The other processes of a fleet that answer requests of the same service."""

    async def explain(self, request_id: str, tenant: str) -> Explanation | None:
        """What the first of them knows of a request of this tenant; None where none does."""
        ...
