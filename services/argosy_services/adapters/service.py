"""Loads adapters into running engines and takes them out again, without disturbing what runs.

What should be resident stands in the SQL store. Calls change it there; this replica follows it, as every other one
does, so that replicas agree without talking to each other and a restart loses nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from argosy_services.adapters.alias_store import AliasStore
from argosy_services.adapters.aliases import Aliases
from argosy_services.adapters.cache import AdapterCache
from argosy_services.adapters.carrier import Carrier
from argosy_services.adapters.failed import FailedHere
from argosy_services.adapters.forms import check_alias, check_name, check_weights
from argosy_services.adapters.kept import KeptFiles
from argosy_services.adapters.life import Life
from argosy_services.adapters.origins import Origins
from argosy_services.adapters.registry import Adapter, AdapterRegistry, not_ready
from argosy_services.adapters.residence import Residence
from argosy_services.adapters.store import AdapterStore, Picture, Wanted
from argosy_services.adapters.tables import Operation
from argosy_services.adapters.types import COMING, FINAL, SETTLED, AdapterRecord, AdapterState, AliasRecord, AliasTarget
from argosy_services.adapters.uploads import Part, Upload, Uploads
from argosy_services.adapters.watch import WatchEvent, watch
from argosy_services.errors import ArgosyError, Reason, adapter_not_found, invalid_field, model_not_found
from argosy_services.leases import Lease
from argosy_services.rpc import validate
from argosy_services.storage.database import Database

log = structlog.get_logger("argosy.adapters")

DEFAULT_DRAIN_S = 60.0
MAX_DRAIN_S = 3_600.0
_VERSION = re.compile(r"[0-9a-f]{64}")
MAX_STICKY_KEY_BYTES = 256
_MAX_WAITING = 256
# How often a replica looks for changes that others made.
_POLL_S = 0.5


class AdaptersService:
    """Adapters of the served models. Lives on one event loop's thread.

    `residences` maps names of base models to where their adapters live, the first one is the default. Sources are
    accepted below `roots` and `remotes`; files of at most `max_size_bytes` an adapter are kept below `directory`.
    """

    def __init__(
        self,
        residences: Mapping[str, Residence],
        database: Database,
        *,
        roots: Sequence[Path],
        max_size_bytes: int,
        directory: Path,
        remotes: Sequence[str] = (),
    ) -> None:
        self._residences = dict(residences)
        self._directory = directory
        self._cache = AdapterCache(directory / "coming")
        self._registry = AdapterRegistry()
        self._store = AdapterStore(database)
        self._alias_store = AliasStore(database)
        self._aliases = Aliases()
        self._uploads = Uploads(database)
        sources = Origins(self._uploads, roots=roots, remotes=remotes, max_size_bytes=max_size_bytes)
        self._carrier = Carrier(self._registry, self._store, sources, self._cache)
        self._lives: dict[str, Life] = {}
        self._failed = FailedHere()
        # Held while something is changed in the store and here: a picture from before it must not undo it.
        self._sync = asyncio.Lock()
        self._picture: Picture | None = None
        self._following: asyncio.Task[None] | None = None
        self._closed = False

    def accept(self, roots: Sequence[Path], remotes: Sequence[str], max_size_bytes: int) -> None:
        """Changes which sources are accepted from now on."""
        self._carrier.sources = Origins(self._uploads, roots=roots, remotes=remotes, max_size_bytes=max_size_bytes)

    async def start(self) -> None:
        """Opens the store and begins to bring back what should be resident. Must come before the first adapter."""
        identity = await self._store.open()
        kept = self._carrier.kept = KeptFiles(self._directory / identity)
        await asyncio.to_thread(self._cache.open)
        here = await asyncio.to_thread(kept.numbers)
        picture = await self._store.picture()
        await asyncio.to_thread(kept.sweep, here - {wanted.number for wanted in picture.wanted})
        self._apply(picture)
        self._following = asyncio.create_task(self._follow_the_store(), name="adapters follow the store")

    async def close(self) -> None:
        """Ends all work in the background. What should be resident stays so, and its files are kept."""
        self._closed = True
        tasks = [life.task for life in self._lives.values() if life.task is not None]
        for life in self._lives.values():
            life.cancelled.set()
        if self._following is not None:
            tasks.append(self._following)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._registry.clear()
        await asyncio.to_thread(self._cache.close)
        await self._carrier.close()

    async def load(
        self,
        name: str,
        source: str,
        base_model: str = "",
        *,
        pinned: bool = False,
        tenant: str = "",
        request_id: str = "",
    ) -> AdapterRecord:
        """Accepts an adapter; loading goes on in the background. A pinned one never leaves its slot.

        An adapter of the same name, source and base model that is not in a final state is answered as it is. Raises
        INVALID_FIELD, SOURCE_REFUSED, MODEL_NOT_FOUND, ADAPTER_EXISTS (the name is taken), ADAPTER_NOT_READY (the
        name's last adapter still drains), QUEUE_FULL and STORE_UNAVAILABLE. This and every other change answers a
        second call with the same `request_id` of one `tenant` as it did the first.
        """
        check_name(name)
        base_model, _ = self._residence(base_model)
        source = await asyncio.to_thread(self._carrier.sources.resolve, source)
        operation = _operation(tenant, request_id, f"load {name} {source} {base_model}")
        async with self._sync:
            self._check_room(name)
            wanted = await self._store.want(Wanted(0, name, source, base_model, pinned), operation)
            self._picture = None
            # A call that is repeated after the adapter has left does not bring it back.
            adapter = self._registry.get(name) if wanted.leaving else self._take_up(wanted)
            return self._registry.picture(adapter)

    async def unload(
        self, name: str, drain_s: float = DEFAULT_DRAIN_S, *, tenant: str = "", request_id: str = ""
    ) -> AdapterRecord:
        """Lets an adapter leave: its users have `drain_s` seconds to finish.

        An adapter in a final state is answered as it is; for one that drains already the earlier deadline counts.
        Raises INVALID_FIELD, ADAPTER_NOT_FOUND, ADAPTER_IN_USE (an alias points at it) and STORE_UNAVAILABLE.
        """
        if not 0 <= drain_s <= MAX_DRAIN_S:
            limit = f"0 to {MAX_DRAIN_S:g} seconds"
            raise invalid_field("drain_timeout", f"must be {limit}", limit=limit, value=drain_s)
        async with self._sync:
            released = await self._store.release(name, drain_s, _operation(tenant, request_id, f"unload {name}"))
            self._picture = None
            adapter = self._registry.find(name)
            if adapter is None:
                if released is None:
                    raise adapter_not_found(name)
                if released.base_model not in self._residences:
                    return await self._let_go(released)
                adapter = self._take_up(released)
            life = self._lives.get(adapter.key)
            if life is not None and (released is None or released.number == adapter.wanted.number):
                self._carrier.dismiss(life, drain_s)
            return self._registry.picture(adapter)

    async def upload(self, part: Part) -> Upload:
        """Takes a part of an adapter that a caller sends; see `Uploads.take`."""
        return await self._uploads.take(part, self._carrier.sources.max_size_bytes)

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

    async def set_alias(
        self,
        alias: str,
        targets: Mapping[str, int],
        *,
        expected: int | None = None,
        tenant: str = "",
        request_id: str = "",
    ) -> AliasRecord:
        """Points an alias at adapters, by name or version, with their weights. Requests that come later go by it.

        `expected` is the revision that it must have, 0 where it must not be set. Raises INVALID_FIELD,
        ADAPTER_NOT_FOUND, ADAPTER_NOT_READY, ALIAS_CHANGED and STORE_UNAVAILABLE.
        """
        check_alias(alias)
        check_weights(targets)
        chosen = [AliasTarget(self._ready(target).record.version, weight) for target, weight in targets.items()]
        if len({target.version for target in chosen}) < len(chosen):
            raise invalid_field("targets", "name one version twice", limit="each once", value=", ".join(targets))
        said = " ".join(f"{target.version}:{target.weight}" for target in chosen)
        operation = _operation(tenant, request_id, f"set {alias} {said}")
        return await self._change_alias(self._alias_store.set_alias(alias, chosen, expected, operation))

    async def roll_back(self, alias: str, *, tenant: str = "", request_id: str = "") -> AliasRecord:
        """Has an alias mean again what it meant before it was last set. Raises ALIAS_NOT_FOUND, NOTHING_TO_ROLL_BACK,
        ADAPTER_NOT_READY (a version is not loaded any more) and STORE_UNAVAILABLE.
        """
        return await self._change_alias(
            self._alias_store.roll_back(alias, _operation(tenant, request_id, f"roll back {alias}"))
        )

    async def delete_alias(self, alias: str, *, tenant: str = "", request_id: str = "") -> AliasRecord:
        """Forgets an alias. Raises ALIAS_NOT_FOUND and STORE_UNAVAILABLE."""
        return await self._change_alias(
            self._alias_store.delete_alias(alias, _operation(tenant, request_id, f"delete {alias}"))
        )

    async def alias(self, alias: str) -> AliasRecord:
        """What an alias means. Raises ALIAS_NOT_FOUND and STORE_UNAVAILABLE."""
        return await self._alias_store.alias(alias)

    async def aliases(self) -> tuple[AliasRecord, ...]:
        """All aliases. Raises STORE_UNAVAILABLE."""
        return (await self._store.picture()).aliases

    @asynccontextmanager
    async def lease(self, name: str, on_revoke: Callable[[], None], sticky_key: str = "") -> AsyncIterator[Lease]:
        """The right to use an adapter for the length of a block; see `generation.ports.AdapterLeases`."""
        adapter = self._named(name, sticky_key)
        if adapter.wanted.version and adapter.state in COMING:
            await self._until_settled(adapter)
        ticket = self._registry.lease(adapter, on_revoke)
        try:
            async with self._residence(adapter.record.base_model)[1].hold(adapter.key):
                record = adapter.record
                yield Lease(record.name, adapter.key, record.version, record.base_model)
        finally:
            self._registry.give_back(ticket)
            if life := self._lives.get(adapter.key):
                life.lease_ended()

    def kept(self) -> list[tuple[Wanted, Path]]:
        """The adapters that are wanted and were served before, and where their files are."""
        kept = self._carrier.kept
        coming = [adapter.wanted for adapter in self._registry.adapters() if adapter.state in COMING]
        found = [(wanted, kept.path(wanted.number)) for wanted in coming if kept is not None and wanted.version]
        return [(wanted, path) for wanted, path in found if path.exists()]

    def _named(self, name: str, sticky_key: str) -> Adapter:
        """The adapter that a request names, by an alias, a version or its name. Raises INPUT_TOO_LARGE too."""
        validate.text_size("adapter_sticky_key", sticky_key, limit_bytes=MAX_STICKY_KEY_BYTES)
        if "@" in name:
            name = self._aliases.resolve(name, sticky_key)
        return self._find(name)

    def _find(self, name: str) -> Adapter:
        found = self._registry.of_version(name) if _VERSION.fullmatch(name) else None
        return found or self._registry.get(name)

    def _ready(self, name: str) -> Adapter:
        adapter = self._find(name)
        if adapter.state is not AdapterState.READY:
            raise not_ready(adapter.record)
        return adapter

    def _version_is_ready(self, version: str) -> bool:
        found = self._registry.of_version(version)
        return found is not None and found.state is AdapterState.READY

    async def _until_settled(self, adapter: Adapter) -> None:
        """Waits for an adapter that was served before and is coming back."""
        with self._registry.news() as news:
            while adapter.state not in SETTLED:
                news.clear()
                await news.wait()

    def _residence(self, base_model: str) -> tuple[str, Residence]:
        known = list(self._residences)
        name = base_model or next(iter(known), "")
        residence = self._residences.get(name)
        if residence is None:
            raise model_not_found(name, known)
        return name, residence

    def _check_room(self, name: str) -> None:
        if self._closed:
            raise ArgosyError(Reason.DRAINING, "the server is shutting down; retry on another one", retry_after_s=1.0)
        present = self._registry.find(name)
        if present is not None and present.state is AdapterState.DRAINING:
            raise not_ready(self._registry.picture(present))
        waiting = sum(life.adapter.state is not AdapterState.READY for life in self._lives.values())
        if waiting >= _MAX_WAITING and (present is None or present.state in FINAL):
            raise ArgosyError(
                Reason.QUEUE_FULL,
                f"{waiting} adapters are being loaded or unloaded, at most {_MAX_WAITING} may; retry later",
                retry_after_s=5.0,
                limit=_MAX_WAITING,
                value=waiting,
            )

    def _take_up(self, wanted: Wanted) -> Adapter:
        """Begins to bring up what is wanted, unless that was begun or its name is still another one's."""
        present = self._registry.find(wanted.name)
        if present is not None and present.state not in FINAL:
            return present
        self._failed.begun(wanted.number)
        residence = self._residences[wanted.base_model]
        adapter = self._registry.accept(wanted, lambda: residence.tier(wanted.key))
        if wanted.failure is not None:
            self._registry.move(adapter, AdapterState.FAILED, failure=wanted.failure)
            return adapter
        life = Life(adapter, residence, wanted)
        self._lives[adapter.key] = life
        life.task = asyncio.create_task(self._carry(life), name=f"adapter {adapter.key}")
        return adapter

    async def _let_go(self, wanted: Wanted) -> AdapterRecord:
        """Unloads an adapter of a model that is served no more: of it there is nothing but files."""
        adapter = self._registry.accept(wanted)
        self._registry.move(adapter, AdapterState.DRAINING)
        try:
            await self._carrier.remove_files(wanted.number)
        except OSError:
            # The next start removes them.
            log.exception("an adapter's files could not be removed", adapter=adapter.key)
        self._registry.move(adapter, AdapterState.UNLOADED)
        return self._registry.picture(adapter)

    async def _carry(self, life: Life) -> None:
        try:
            await self._carrier.follow(life)
        finally:
            del self._lives[life.adapter.key]
        if life.adapter.state is AdapterState.FAILED:
            self._failed.note(life.wanted.number, life.retry_after_s)

    async def _follow_the_store(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self._look()
            except ArgosyError as error:
                log.warning("the store cannot be followed", cause=error.message)
            except Exception:
                log.exception("the store cannot be followed")

    async def _look(self) -> None:
        async with self._sync:
            if self._picture is None or self._picture.change != await self._store.change():
                self._picture = await self._store.picture()
            self._apply(self._picture)
            for number in self._failed.forget({wanted.number for wanted in self._picture.wanted}):
                await self._carrier.remove_files(number)

    def _apply(self, picture: Picture) -> None:
        """Brings this replica towards what should be."""
        wanted = {each.number: each for each in picture.wanted if each.base_model in self._residences}
        drains = {each.number: each.drain_s for each in picture.leaving}
        for life in list(self._lives.values()):
            number = life.wanted.number
            if number not in wanted and not life.leaving:
                self._carrier.dismiss(life, drains.get(number, DEFAULT_DRAIN_S))
        for each in wanted.values():
            present = self._registry.find(each.name)
            if present is None or present.wanted.number != each.number or self._failed.due(each.number):
                self._take_up(each)
            else:
                # Its version may be known by now, so that it may be asked for and waited for.
                present.wanted = each
        self._aliases.take_over(picture.aliases, self._version_is_ready)

    async def _change_alias(self, change: Awaitable[AliasRecord]) -> AliasRecord:
        async with self._sync:
            record = await change
            self._picture = await self._store.picture()
            self._apply(self._picture)
            return record


def _operation(tenant: str, request_id: str, what: str) -> Operation | None:
    return Operation(tenant, request_id, what) if request_id else None
