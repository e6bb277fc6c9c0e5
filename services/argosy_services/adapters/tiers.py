"""The adapters of one engine in three tiers: its slots, the host's memory, and the disk.

A request that names an adapter holds it. Who asks for one that is in a slot goes on at once; others stand in a line.
The first of them takes the slot of the adapter that was held least recently, never of one that is held or pinned; the
weights of that one stay in memory as far as there is room, and its files on the disk in any case. Where all are held
all the time, one of them is closed after a moment: who holds it finishes, who asks for it stands in the line as well.
So popular adapters keep their slots, and nobody starves.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from argosy_services.adapters.types import AdapterTier
from argosy_services.adapters.waiting import Changes, engine_step, to_end
from argosy_services.engine.base import AdapterHost, AdapterWeights
from argosy_services.errors import ArgosyError, Reason
from argosy_services.leases import adapter_left, adapter_name

log = structlog.get_logger("argosy.adapters")
T = TypeVar("T")

# Each thread that reads weights keeps a heap of their size: few threads, always the same ones.
READERS = 2
# How long the first in the line waits for a slot that nobody holds, before one is closed for it.
_PATIENCE_S = 0.1


@dataclass(eq=False, slots=True)
class _Entry:
    """One adapter. `in_slot` says that requests may use it, `weights` are kept while it is in a slot or in memory.

    `holders` use it; `waiting` stand in the line for it, and while one does its weights stay.
    """

    key: str
    directory: Path
    weights: AdapterWeights | None
    pinned: bool
    in_slot: bool = False
    removed: bool = False
    holders: int = 0
    waiting: int = 0
    last_held: int = 0
    # One step of the engine at a time for each adapter.
    step: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class TierCounts:
    """How often a request found its adapter in a slot, had to wait until it was there, and how often a slot was taken
    from an adapter.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class AdapterTiers:
    """`Residence` over one engine, on one event loop's thread."""

    def __init__(self, engine: AdapterHost, *, slots: int, memory_bytes: int) -> None:
        """`memory_bytes` bounds the weights that are kept in memory beside those in slots."""
        self.counts = TierCounts()
        self._engine = engine
        self.slots = slots
        self._memory_bytes = memory_bytes
        self._entries: dict[str, _Entry] = {}
        self._taken: set[str] = set()
        self._turn = asyncio.Lock()
        self._changes = Changes()
        self._clock = itertools.count(1)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="adapters")

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    @property
    def keys(self) -> set[str]:
        """All adapters that are here, in whichever tier."""
        return set(self._entries)

    @property
    def in_slots(self) -> set[str]:
        """Those in the engine's slots."""
        return {entry.key for entry in self._entries.values() if entry.in_slot}

    @property
    def residents(self) -> dict[str, AdapterTier]:
        """Where each adapter is. For any thread."""
        found = {key: self.tier(key) for key in list(self._entries)}
        return {key: tier for key, tier in found.items() if tier is not None}

    @property
    def in_memory_bytes(self) -> int:
        """Bytes of the weights that are kept in memory beside those in slots."""
        return sum(_size(entry) for entry in self._entries.values() if not entry.in_slot)

    def tier(self, key: str) -> AdapterTier | None:
        """See `Residence.tier`."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.in_slot:
            return AdapterTier.SLOT
        return AdapterTier.DISK if entry.weights is None else AdapterTier.MEMORY

    async def read(self, directory: Path) -> AdapterWeights:
        """See `Residence.read`."""
        return await self._in_thread(lambda: self._engine.read_adapter(directory))

    async def add(self, key: str, directory: Path, weights: AdapterWeights | None = None, *, pinned: bool) -> None:
        """See `Residence.add`. It is put into a slot if one is free; `weights` saves reading it again."""
        if key in self._entries:
            return
        if pinned and self._pinned() + 1 >= self.slots:
            raise ArgosyError(
                Reason.ADAPTER_SLOTS_FULL,
                f"{self._pinned()} adapters are pinned in {self.slots} slots, and one slot must stay for the others; "
                "load it unpinned, or unload a pinned one",
                limit=self.slots - 1,
                retry_after_s=5.0,
            )
        entry = self._entries[key] = _Entry(key, directory, weights, pinned)
        if pinned or len(self._taken) < self.slots:
            try:
                await self._bring(entry, only_if_free=not pinned)
            except ArgosyError:
                # The engine has not taken it. After any other failure the caller has it removed.
                self._entries.pop(key, None)
                raise
        self._trim()

    async def remove(self, key: str) -> None:
        """See `Residence.remove`."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.removed = True
        self._changes.tell()
        await engine_step(self._remove(entry))

    async def acquire(self, key: str) -> None:
        """Has an adapter in a slot until `release`; see `Residence.hold`."""
        entry = self._entries.get(key)
        if entry is None or entry.removed:
            raise adapter_left(adapter_name(key))
        entry.last_held = next(self._clock)
        if entry.in_slot:
            self.counts.hits += 1
        else:
            self.counts.misses += 1
            await self._bring(entry)
        entry.holders += 1

    def release(self, key: str) -> None:
        """Ends one `acquire`. An adapter that was removed meanwhile is ignored."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.holders -= 1
        if not entry.holders:
            self._changes.tell()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """See `Residence.hold`."""
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    def close(self) -> None:
        """Ends the threads. Blocks while one of them reads."""
        self._readers.shutdown()

    async def _remove(self, entry: _Entry) -> None:
        try:
            async with entry.step:
                if entry.key in self._taken:
                    await asyncio.wrap_future(self._engine.unload_adapter(entry.key))
        finally:
            # Whether it could be freed or not, nobody may use it any more.
            self._taken.discard(entry.key)
            entry.in_slot = False
            self._entries.pop(entry.key, None)
            self._changes.tell()

    async def _bring(self, entry: _Entry, *, only_if_free: bool = False) -> None:
        """Puts an adapter into a slot, once it is first in the line; `only_if_free` leaves others' slots to them."""
        entry.waiting += 1
        try:
            async with self._turn:
                while not entry.in_slot:
                    if entry.removed:
                        raise adapter_left(adapter_name(entry.key))
                    if only_if_free and len(self._taken) >= self.slots:
                        break
                    if (weights := entry.weights) is None:
                        entry.weights = await self.read(entry.directory)
                    else:
                        await self._free_a_slot(entry)
                        await engine_step(self._put(entry, weights))
        finally:
            entry.waiting -= 1
        self._trim()

    async def _free_a_slot(self, first: _Entry) -> None:
        """Sees to it that a slot is free for the first in the line, unless that one is removed."""
        closed: _Entry | None = None
        try:
            while len(self._taken) >= self.slots and not first.removed:
                inside = [entry for entry in self._entries.values() if (entry.in_slot or entry is closed)]
                may_leave = [entry for entry in inside if not (entry.pinned or entry.removed)]
                may_leave.sort(key=lambda entry: entry.last_held)
                idle = next((entry for entry in may_leave if not entry.holders), None)
                if idle is not None:
                    # At once: from here on who wants it stands in the line, before the engine has let it go.
                    idle.in_slot = False
                    await engine_step(self._evict(idle))
                elif not await self._changes.next(None if closed else _PATIENCE_S) and may_leave:
                    closed = may_leave[0]
                    closed.in_slot = False
        finally:
            if closed is not None and closed.key in self._taken and not closed.removed:
                closed.in_slot = True

    async def _put(self, entry: _Entry, weights: AdapterWeights) -> None:
        async with entry.step:
            if entry.removed:
                raise adapter_left(adapter_name(entry.key))
            self._taken.add(entry.key)
            try:
                await asyncio.wrap_future(self._engine.load_adapter(entry.key, weights))
            except ArgosyError:
                # Only such an error says that the engine did not take it.
                self._taken.discard(entry.key)
                self._changes.tell()
                raise
            entry.in_slot = not entry.removed

    async def _evict(self, entry: _Entry) -> None:
        async with entry.step:
            if entry.removed:
                return
            try:
                await asyncio.wrap_future(self._engine.unload_adapter(entry.key))
            except ArgosyError:
                entry.in_slot = True
                raise
            self._taken.discard(entry.key)
        self.counts.evictions += 1
        self._trim()

    def _trim(self) -> None:
        """Keeps no more weights in memory than may be: those that were held last."""
        cold = [entry for entry in self._entries.values() if entry.weights is not None and not entry.in_slot]
        left = self._memory_bytes
        for entry in sorted(cold, key=lambda entry: -entry.last_held):
            left -= _size(entry)
            if left < 0 and not entry.waiting:
                entry.weights = None

    def _pinned(self) -> int:
        return sum(entry.pinned for entry in self._entries.values())

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await to_end(asyncio.get_running_loop().run_in_executor(self._readers, function))


def _size(entry: _Entry) -> int:
    return 0 if entry.weights is None else entry.weights.size_bytes
