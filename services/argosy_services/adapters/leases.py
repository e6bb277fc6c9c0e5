"""Leases for requests that run in the adapters' own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from argosy_services.adapters.service import AdaptersService
from argosy_services.generation.ports import Lease


class LocalLeases:
    """`generation.ports.AdapterLeases` over an `AdaptersService` of the same event loop."""

    def __init__(self, service: AdaptersService) -> None:
        self._service = service

    @asynccontextmanager
    async def lease(self, name: str, on_revoke: Callable[[], None]) -> AsyncIterator[Lease]:
        """A lease for the length of an `async with` block; see `AdapterLeases`."""
        with self._service.lease(name, on_revoke) as lease:
            yield lease
