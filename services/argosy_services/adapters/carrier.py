"""Brings adapters into service and takes them out again.

One task follows each adapter through its whole life: it brings the adapter up, waits until it must leave, lets its
users finish and takes it down. Nobody else asks its residence for anything, so no two steps of one adapter overlap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import structlog

from argosy_services import metrics
from argosy_services.adapters.cache import AdapterCache
from argosy_services.adapters.kept import KeptFiles
from argosy_services.adapters.life import Leaving, Life, Line
from argosy_services.adapters.origins import Origins
from argosy_services.adapters.registry import AdapterRegistry, failure_of
from argosy_services.adapters.sources import FetchCancelled
from argosy_services.adapters.store import AdapterStore
from argosy_services.adapters.types import AdapterState, Failure
from argosy_services.adapters.waiting import to_end
from argosy_services.engine.base import AdapterWeights
from argosy_services.errors import ArgosyError, Reason

log = structlog.get_logger("argosy.adapters")
T = TypeVar("T")

_AT_ONCE = 2
# How long holders of leases may take to end after they were told to; then the engine ends their sequences.
_REVOKE_GRACE_S = 10.0
_STORE_PAUSE_S = 2.0
# What is wrong with an adapter wherever it is loaded; every other failure is one of this replica.
_OF_THE_ADAPTER = frozenset({Reason.ADAPTER_INVALID, Reason.WRONG_BASE_MODEL, Reason.SOURCE_REFUSED})


class Carrier:
    """Carries lives from PENDING to their final state. Lives on one event loop's thread."""

    def __init__(self, registry: AdapterRegistry, store: AdapterStore, sources: Origins, cache: AdapterCache) -> None:
        self.sources = sources
        self.kept: KeptFiles | None = None
        self._registry = registry
        self._store = store
        self._cache = cache
        self._line = Line(_AT_ONCE)
        self._copiers = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="adapter-files")

    def dismiss(self, life: Life, drain_s: float) -> None:
        """Has an adapter leave: its users have `drain_s` seconds. Of several deadlines the earliest counts."""
        if life.adapter.state is not AdapterState.DRAINING:
            self._move(life, AdapterState.DRAINING)
        life.leave(drain_s)

    async def follow(self, life: Life) -> None:
        """The whole life of one adapter."""
        failure: Failure | None = None
        try:
            await self._bring_up(life)
            await life.until_leaving()
            await self._drain(life)
        except (Leaving, FetchCancelled):
            log.info("adapter unloaded before it was ready", adapter=life.adapter.key)
        except ArgosyError as error:
            failure = failure_of(error)
            life.retry_after_s = error.retry_after_s
        except Exception:
            failure = self._internal(life)
        await self._tell_of(life, failure)
        if (not_freed := await self._take_down(life, failure)) is not None:
            life.retry_after_s = None
        # Once an adapter is unwanted, only what could not be freed is still a failure.
        failure = not_freed or (None if life.leaving else failure)
        final = AdapterState.UNLOADED if failure is None else AdapterState.FAILED
        self._move(life, final, failure=failure, size_bytes=0)

    async def remove_files(self, number: int) -> None:
        """Removes the files of an adapter from this machine."""
        await self._do(lambda: self._kept().remove(number))

    async def close(self) -> None:
        """Ends the threads, after the lives."""
        await asyncio.to_thread(self._copiers.shutdown)

    async def _bring_up(self, life: Life) -> None:
        with self._line.place(life):
            await life.until_turn()
            self._move(life, AdapterState.FETCHING)
            weights = await self._kept_before(life)
            directory = await self._while_away(life, lambda: self._do(lambda: self._files(life)))
            life.has_files = True
            life.check_wanted()
            self._move(life, AdapterState.VALIDATING)
            weights = weights or await life.residence.read(directory)
            life.check_wanted()
            await self._settle(life, weights.version)
            about = {"version": weights.version, "rank": weights.rank, "target_modules": weights.target_modules}
            self._move(life, AdapterState.LOADING, **about)
            await self._take_in(life, directory, weights)
            life.check_wanted()
        self._move(life, AdapterState.READY, size_bytes=weights.size_bytes)
        metrics.ADAPTER_LOAD_SECONDS.observe(time.monotonic() - life.accepted)

    async def _kept_before(self, life: Life) -> AdapterWeights | None:
        """What an earlier start has kept. Nothing waits until files are on the disk, so that a machine which lost its
        power may have damaged ones: they are removed, to be fetched again.
        """
        directory, number = self._kept().path(life.wanted.number), life.wanted.number
        if not life.wanted.version or not await self._do(directory.exists):
            return None
        try:
            weights = await life.residence.read(directory)
        except ArgosyError as error:
            if error.reason not in _OF_THE_ADAPTER:
                raise
            log.warning("kept files cannot be used", adapter=life.adapter.key, cause=error.message)
        else:
            if weights.version == life.wanted.version:
                return weights
        await self._do(lambda: self._kept().remove(number))
        return None

    def _files(self, life: Life) -> Path:
        """A directory of this machine that holds the adapter's files for as long as it is wanted. Blocks."""
        kept, number = self._kept(), life.wanted.number
        if kept.path(number).exists():
            return kept.path(number)
        staging = self._cache.new_directory()
        try:
            self.sources.fetch(life.wanted.source, staging, life.cancelled)
        except BaseException:
            self._cache.remove(staging)
            raise
        return kept.keep(staging, number)

    async def _settle(self, life: Life, version: str) -> None:
        """Agrees with the other replicas on which version this is. Once that is known the store is not needed."""
        if version == life.adapter.wanted.version:
            return
        noted = await self._while_away(life, lambda: self._store.settle(life.wanted.number, version))
        if noted is None:
            self.dismiss(life, 0.0)
            raise Leaving
        if noted.failure is not None:
            raise ArgosyError(Reason(noted.failure.reason), noted.failure.message)
        if noted.version != version:
            problem = (
                f"its files have changed: they are version {version}, and were {noted.version} when it was loaded; "
                "unload it and load it again to have the new ones"
            )
            raise ArgosyError(Reason.ADAPTER_INVALID, problem, detail=problem)

    async def _take_in(self, life: Life, directory: Path, weights: AdapterWeights) -> None:
        # Only an ArgosyError says that it was not taken in; after any other one it is removed again.
        life.taken_in = True
        try:
            await life.residence.add(life.adapter.key, directory, weights, pinned=life.wanted.pinned)
        except ArgosyError:
            life.taken_in = False
            raise

    async def _drain(self, life: Life) -> None:
        if await life.until_unused():
            return
        for ticket in list(life.adapter.tickets):
            try:
                ticket.on_revoke()
            except Exception:
                log.exception("a lease could not be revoked", adapter=life.adapter.key)
        if not await life.until_unused(_REVOKE_GRACE_S):
            log.warning("adapter taken from its users", adapter=life.adapter.key, leases=len(life.adapter.tickets))

    async def _tell_of(self, life: Life, failure: Failure | None) -> None:
        """Lets the other replicas know what is wrong with an adapter, so that it is the same everywhere."""
        if failure is None or life.leaving or failure.reason not in _OF_THE_ADAPTER:
            return
        try:
            await self._store.settle(life.wanted.number, failure=failure)
        except ArgosyError as error:
            log.warning("a failure could not be noted", adapter=life.adapter.key, cause=error.message)
        except Exception:
            # Whatever it is, the adapter must get to its final state, or its name would be taken for ever.
            log.exception("a failure could not be noted", adapter=life.adapter.key)

    async def _take_down(self, life: Life, failure: Failure | None) -> Failure | None:
        """Frees everything that an adapter holds. A failure says what could not be freed.

        Its files stay unless it is unwanted or they are what is wrong: they may be the only ones, and other processes
        of this machine may use them.
        """
        not_freed: Failure | None = None
        if life.taken_in:
            not_freed = await self._attempt(life, life.residence.remove(life.adapter.key))
        files_are_wrong = life.has_files and failure is not None and failure.reason in _OF_THE_ADAPTER
        if life.leaving or files_are_wrong:
            not_freed = await self._attempt(life, self.remove_files(life.wanted.number)) or not_freed
        return not_freed

    async def _while_away(self, life: Life, step: Callable[[], Awaitable[T]]) -> T:
        """The result of a step that needs the database, which may be away for a while. Raises Leaving."""
        while True:
            try:
                return await step()
            except ArgosyError as error:
                if error.reason is not Reason.STORE_UNAVAILABLE:
                    raise
                log.warning("an adapter waits for the database", adapter=life.adapter.key, cause=error.message)
                pause_s = error.retry_after_s or _STORE_PAUSE_S
            await life.pause(pause_s)

    async def _attempt(self, life: Life, step: Awaitable[None]) -> Failure | None:
        try:
            await step
        except ArgosyError as error:
            return failure_of(error)
        except Exception:
            return self._internal(life)
        return None

    def _kept(self) -> KeptFiles:
        if self.kept is None:
            raise RuntimeError("the adapters service has not been started")
        return self.kept

    async def _do(self, function: Callable[[], T]) -> T:
        """The result of a function that works on files."""
        return await to_end(asyncio.get_running_loop().run_in_executor(self._copiers, function))

    def _move(self, life: Life, state: AdapterState, **facts: object) -> None:
        self._registry.move(life.adapter, state, **facts)
        failure = life.adapter.record.failure
        log.info("adapter", adapter=life.adapter.key, state=state.value, failure=failure and failure.message)

    def _internal(self, life: Life) -> Failure:
        log.exception("internal error", adapter=life.adapter.key)
        return Failure(
            str(Reason.INTERNAL),
            f"internal error while the adapter was {life.adapter.state.value}; the server's log has the cause under "
            f"'{life.adapter.key}'",
        )
