"""What replicas that compute with adapters have in common."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import structlog

from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.cluster.handles import AdapterFacts, KnownAdapter, known_adapters
from argosy_services.errors import ArgosyError

log = structlog.get_logger("argosy.cluster")

# How often a replica compares its adapters with those that should be there.
_RECONCILE_S = 5.0


class AdapterReplica:
    """A replica with adapters of one model in tiers of its own. The adapters service tells it of each change, and it
    asks by itself for those that it missed. Lives on one event loop.
    """

    _tiers: AdapterTiers

    async def read_adapter(self, directory: str) -> AdapterFacts | ArgosyError:
        """What an adapter is, if it can be taken in here."""
        try:
            weights = await self._tiers.read(Path(directory))
        except ArgosyError as error:
            return error
        return AdapterFacts(weights.version, weights.rank, weights.target_modules, weights.size_bytes)

    async def load_adapter(self, key: str, known: KnownAdapter) -> ArgosyError | None:
        """Takes an adapter in, unless it is here."""
        try:
            await self._tiers.add(key, Path(known.directory), pinned=known.pinned)
        except ArgosyError as error:
            return error
        return None

    async def unload_adapter(self, key: str) -> ArgosyError | None:
        """Lets an adapter go, if it is here."""
        try:
            await self._tiers.remove(key)
        except ArgosyError as error:
            return error
        return None

    async def _begin_adapters(self, model: str, tiers: AdapterTiers) -> None:
        """Takes in the adapters that should be resident, and follows what changes."""
        self._base_model, self._tiers = model, tiers
        await self._reconcile()
        self._reconciling = asyncio.create_task(self._keep_reconciling(), name="adapters follow the registry")

    async def _end_adapters(self) -> None:
        self._reconciling.cancel()
        with suppress(asyncio.CancelledError):
            await self._reconciling
        await asyncio.to_thread(self._tiers.close)

    async def _look_for(self, adapter: str) -> None:
        """Takes in an adapter that is asked for before this replica has heard of it."""
        if adapter not in self._tiers:
            await self._reconcile()

    async def _keep_reconciling(self) -> None:
        while True:
            await asyncio.sleep(_RECONCILE_S)
            try:
                await self._reconcile()
            except Exception as error:
                log.warning("adapters could not be compared", cause=str(error))

    async def _reconcile(self) -> None:
        """Takes in the adapters that should be here and lets those go that should not."""
        # What comes in while the answer is on its way may be missing from it, and has every right to be here.
        before = self._tiers.keys
        known = await known_adapters(self._base_model)
        for key in known.keys() - self._tiers.keys:
            if (error := await self.load_adapter(key, known[key])) is not None:
                log.warning("an adapter could not be loaded", adapter=key, cause=error.message)
        for key in before - known.keys():
            await self.unload_adapter(key)
