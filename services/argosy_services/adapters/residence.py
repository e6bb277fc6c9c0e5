"""Where the adapters of one base model live: what the adapters service asks of an engine, or of a fleet of them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from argosy_services.adapters.types import AdapterTier
from argosy_services.engine.base import AdapterWeights


class Residence(Protocol):
    """Takes adapters in, has them in an engine while they are used, and lets them go. For one event loop's thread."""

    async def read(self, directory: Path) -> AdapterWeights:
        """Reads and validates a PEFT adapter. Raises ADAPTER_INVALID or WRONG_BASE_MODEL."""
        ...

    async def add(self, key: str, directory: Path, weights: AdapterWeights | None = None, *, pinned: bool) -> None:
        """Takes an adapter in; its files stay in `directory`. A pinned one is in an engine's slot until it is removed.

        Raises ADAPTER_SLOTS_FULL where one more cannot be pinned. Only an ArgosyError says that it was not taken in.
        """
        ...

    async def remove(self, key: str) -> None:
        """Lets an adapter go; its slot and its memory are free when this returns. One that is not here is ignored."""
        ...

    def tier(self, key: str) -> AdapterTier | None:
        """Where the weights of an adapter are. None: not here, or not known."""
        ...

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        """Has an adapter in an engine's slot for the length of an `async with` block, which may wait for a slot.

        Raises ADAPTER_NOT_READY where it was removed.
        """
        ...
