"""Loads adapters into running engines and takes them out again, without disturbing what runs.

One task follows each adapter through its whole life: it brings the adapter up, waits until it must leave, lets its
users finish and takes it down. Nobody else calls the engine for it, so no two steps of one adapter ever overlap.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from argosy_services import metrics
from argosy_services.adapters.cache import AdapterCache
from argosy_services.adapters.life import Leaving, Life, Line
from argosy_services.adapters.registry import Adapter, AdapterRegistry, failure_of, not_ready
from argosy_services.adapters.sources import AdapterSources, FetchCancelled
from argosy_services.adapters.types import FINAL, AdapterRecord, AdapterState, Failure
from argosy_services.adapters.watch import WatchEvent, watch
from argosy_services.engine.base import AdapterHost, AdapterWeights
from argosy_services.errors import ArgosyError, Reason, invalid_field, model_not_found
from argosy_services.generation.ports import Lease

log = structlog.get_logger("argosy.adapters")
T = TypeVar("T")

DEFAULT_DRAIN_S = 60.0
MAX_DRAIN_S = 3_600.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_FORM = "1 to 128 characters of letters, digits, '.', '-' and '_', the first one a letter or digit"
_LOADS_AT_ONCE = 2
_MAX_WAITING = 256
# How long holders of leases may take to end after they were told to; then the engine ends their sequences.
_REVOKE_GRACE_S = 10.0
# How long a service that is closed waits for an engine to end what it was asked for.
_ENGINE_PATIENCE_S = 5.0


class AdaptersService:
    """Adapters of the served models. Lives on one event loop's thread.

    `engines` maps names of base models to their engines, the first one is the default. Sources are accepted below
    `roots`; copies of at most `max_size_bytes` each are kept in `cache_dir` while the adapters are loaded.
    """

    def __init__(
        self, engines: Mapping[str, AdapterHost], roots: Sequence[Path], max_size_bytes: int, cache_dir: Path
    ) -> None:
        self._engines = dict(engines)
        self.accept(roots, max_size_bytes)
        self._cache = AdapterCache(cache_dir)
        self._registry = AdapterRegistry()
        self._lives: dict[str, Life] = {}
        self._line = Line(_LOADS_AT_ONCE)
        # Each thread that reads weights keeps a heap of their size: few threads, always the same ones.
        self._readers = ThreadPoolExecutor(_LOADS_AT_ONCE, thread_name_prefix="adapters")
        self._closed = False

    def accept(self, roots: Sequence[Path], max_size_bytes: int) -> None:
        """Changes which sources are accepted from now on."""
        self._sources = AdapterSources(roots, max_size_bytes)

    def start(self) -> None:
        """Makes the cache. Must come before the first adapter."""
        self._cache.open()

    async def close(self) -> None:
        """Ends all work in the background and removes every copy. Engines are left as they are."""
        self._closed = True
        tasks = [life.task for life in self._lives.values() if life.task is not None]
        for life in self._lives.values():
            life.cancelled.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._registry.clear()
        await asyncio.to_thread(self._cache.close)
        self._readers.shutdown()

    async def load(self, name: str, source: str, base_model: str = "") -> AdapterRecord:
        """Accepts an adapter; loading goes on in the background.

        An adapter of the same name, source and base model that is not in a final state is answered as it is. Raises
        INVALID_FIELD, SOURCE_REFUSED, MODEL_NOT_FOUND, ADAPTER_EXISTS (the name is taken), ADAPTER_NOT_READY (the
        name's last adapter still drains) and QUEUE_FULL.
        """
        if not _NAME.fullmatch(name):
            raise invalid_field("name", f"must be {_NAME_FORM}", limit=_NAME_FORM, value=name)
        base_model, engine = self._engine(base_model)
        directory = await asyncio.to_thread(self._sources.resolve, source)
        # No await from here on: of two calls for one name the second one sees what the first one did.
        if self._closed:
            raise ArgosyError(Reason.DRAINING, "the server is shutting down; retry on another one", retry_after_s=1.0)
        present = self._registry.find(name)
        if present is not None and present.state not in FINAL:
            return self._same(present, directory.uri, base_model)
        waiting = sum(life.adapter.state is not AdapterState.READY for life in self._lives.values())
        if waiting >= _MAX_WAITING:
            raise ArgosyError(
                Reason.QUEUE_FULL,
                f"{waiting} adapters are being loaded or unloaded, at most {_MAX_WAITING} may; retry later",
                retry_after_s=5.0,
                limit=_MAX_WAITING,
                value=waiting,
            )
        adapter = self._registry.accept(name, directory.uri, base_model)
        life = Life(adapter, engine, directory)
        self._lives[adapter.key] = life
        life.task = asyncio.create_task(self._follow(life), name=f"adapter {adapter.key}")
        return self._registry.picture(adapter)

    def unload(self, name: str, drain_s: float = DEFAULT_DRAIN_S) -> AdapterRecord:
        """Lets an adapter leave: its users have `drain_s` seconds to finish.

        An adapter in a final state is answered as it is; for one that drains already the earlier deadline counts.
        Raises INVALID_FIELD and ADAPTER_NOT_FOUND.
        """
        if not 0 <= drain_s <= MAX_DRAIN_S:
            limit = f"0 to {MAX_DRAIN_S:g} seconds"
            raise invalid_field("drain_timeout", f"must be {limit}", limit=limit, value=drain_s)
        adapter = self._registry.get(name)
        life = self._lives.get(adapter.key)
        if life is not None and adapter.state not in FINAL:
            if adapter.state is not AdapterState.DRAINING:
                self._registry.move(adapter, AdapterState.DRAINING)
            life.leave(drain_s)
        return self._registry.picture(adapter)

    def get(self, name: str) -> AdapterRecord:
        """One adapter as it is. Raises ADAPTER_NOT_FOUND."""
        return self._registry.picture(self._registry.get(name))

    def records(self) -> list[AdapterRecord]:
        """All adapters as they are, in no order."""
        return [self._registry.picture(adapter) for adapter in self._registry.adapters()]

    def watch(self, names: Sequence[str] = (), *, until_settled: bool = False) -> AsyncGenerator[WatchEvent]:
        """Adapters as they are, then their changes; see `watch.watch`. Raises INVALID_FIELD and ADAPTER_NOT_FOUND."""
        if until_settled and not names:
            raise invalid_field("until_settled", "needs names to wait for", limit="names", value=True)
        return watch(self._registry, names, until_settled=until_settled)

    @contextmanager
    def lease(self, name: str, on_revoke: Callable[[], None]) -> Iterator[Lease]:
        """The right to use an adapter for the length of a `with` block; see `generation.ports.AdapterLeases`."""
        ticket = self._registry.lease(name, on_revoke)
        adapter = ticket.adapter
        try:
            yield Lease(name=name, key=adapter.key, version=adapter.record.version)
        finally:
            self._registry.give_back(ticket)
            if life := self._lives.get(adapter.key):
                life.lease_ended()

    def _engine(self, base_model: str) -> tuple[str, AdapterHost]:
        known = list(self._engines)
        name = base_model or next(iter(known), "")
        engine = self._engines.get(name)
        if engine is None:
            raise model_not_found(name, known)
        return name, engine

    def _same(self, present: Adapter, source: str, base_model: str) -> AdapterRecord:
        record = self._registry.picture(present)
        if present.state is AdapterState.DRAINING:
            raise not_ready(record)
        if (record.source, record.base_model) != (source, base_model):
            raise ArgosyError(
                Reason.ADAPTER_EXISTS,
                f"adapter '{record.name}' is loaded from {record.source} for {record.base_model}; "
                "unload it first or choose another name",
                adapter=record.name,
            )
        return record

    async def _follow(self, life: Life) -> None:
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
        except Exception:
            failure = self._internal(life)
        # Once an adapter is unwanted, only what could not be freed is still a failure.
        failure = await self._take_down(life) or (None if life.leaving else failure)
        del self._lives[life.adapter.key]
        final = AdapterState.UNLOADED if failure is None else AdapterState.FAILED
        self._move(life, final, failure=failure, size_bytes=0)

    async def _bring_up(self, life: Life) -> None:
        with self._line.place(life):
            await life.until_turn()
            self._move(life, AdapterState.FETCHING)
            copy = life.copy = await self._read(self._cache.new_directory)
            await self._read(lambda: self._sources.fetch(life.source, copy, life.cancelled))
            life.check_wanted()
            self._move(life, AdapterState.VALIDATING)
            weights = await self._read(lambda: life.engine.read_adapter(copy))
            life.check_wanted()
            about = {"version": weights.version, "rank": weights.rank, "target_modules": weights.target_modules}
            self._move(life, AdapterState.LOADING, **about)
            await self._put_in(life, weights)
            life.check_wanted()
        self._move(life, AdapterState.READY, size_bytes=weights.size_bytes)
        metrics.ADAPTER_LOAD_SECONDS.observe(time.monotonic() - life.accepted)

    async def _read(self, function: Callable[[], T]) -> T:
        """The result of a function that reads or makes files of adapters that come."""
        return await _to_end(asyncio.get_running_loop().run_in_executor(self._readers, function))

    async def _put_in(self, life: Life, weights: AdapterWeights) -> None:
        # Only an ArgosyError says that the engine did not take it; after any other one it is taken out again.
        life.in_engine = True
        try:
            await _in_engine(life.engine.load_adapter(life.adapter.key, weights))
        except ArgosyError:
            life.in_engine = False
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

    async def _take_down(self, life: Life) -> Failure | None:
        """Frees everything that an adapter holds. A failure says what could not be freed."""
        failure: Failure | None = None
        copy = life.copy
        if life.in_engine:
            failure = await self._attempt(life, lambda: _in_engine(life.engine.unload_adapter(life.adapter.key)))
        if copy is not None:
            failure = await self._attempt(life, lambda: _to_end(asyncio.to_thread(self._cache.remove, copy))) or failure
        return failure

    async def _attempt(self, life: Life, step: Callable[[], Awaitable[None]]) -> Failure | None:
        try:
            await step()
        except ArgosyError as error:
            return failure_of(error)
        except Exception:
            return self._internal(life)
        return None

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


async def _in_engine(future: Future[None]) -> None:
    """Waits for a step of an engine, which is never cancelled."""
    await _to_end(asyncio.wrap_future(future), patience_s=_ENGINE_PATIENCE_S)


async def _to_end(work: Awaitable[T], *, patience_s: float | None = None) -> T:
    """The result of what cannot be cancelled: who is cancelled meanwhile still waits for its end."""
    work = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work}, timeout=patience_s)
        if work.done() and not work.cancelled():
            work.exception()  # looked at, so that asyncio does not report it as forgotten
        raise
