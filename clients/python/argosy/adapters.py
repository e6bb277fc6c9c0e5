"""Loads, lists and unloads LoRA adapters while requests run."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path

from argosy import errors
from argosy._call import Deadline
from argosy._caller import AsyncCaller, Caller, Rpc
from argosy._convert import adapters as convert
from argosy._push import ATTEMPTS, LocalAdapter, PushProgress, check_weight, upload, upload_async, with_share
from argosy._stream import AsyncStream, Stream
from argosy.api.adapters.v1 import adapters_service_pb2 as rpc
from argosy.api.adapters.v1.adapters_service_pb2_grpc import AdaptersServiceStub
from argosy.types.adapters import Adapter, AdapterEvent, Alias

_SETTLE_TIMEOUT = 600.0
"""Seconds that loading and unloading may take, waiting included, where nothing else is said."""


class AdapterWatch(Stream[AdapterEvent]):
    """Adapters as they are, then `SnapshotComplete`, then each change."""


class AsyncAdapterWatch(AsyncStream[AdapterEvent]):
    """`AdapterWatch` for asyncio."""


class AdaptersClient:
    """Adapters, as `client.adapters`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = AdaptersServiceStub(caller.channel)

    def load(
        self,
        name: str,
        source: str | Path,
        *,
        base_model: str = "",
        pinned: bool = False,
        wait: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Adapter:
        """Loads an adapter under a name. Loading it again changes nothing, so the call is safe to repeat.

        `source` is a `file://` URI, or a Path that the server sees as well; `push` takes one that it does not see. A
        `pinned` adapter never leaves its slot for another one. With `wait` the adapter is ready when this
        returns, and a failure raises what is wrong with it (AdapterInvalidError, WrongBaseModelError,
        AdapterSlotsFullError, ...); otherwise it returns as soon as the server has taken the order.
        """
        request = convert.load_request(name, source, base_model=base_model, pinned=pinned)
        deadline = self._caller.deadline(timeout, _SETTLE_TIMEOUT)
        adapter = self._change(self._stub.LoadAdapter, request, deadline.timeout, request_id)
        if not wait:
            return adapter
        return convert.check_loaded(self._settled(adapter, deadline.timeout))

    def push(
        self,
        directory: str | Path,
        *,
        name: str = "",
        alias: str = "",
        weight: float = 100.0,
        base_model: str = "",
        pinned: bool = False,
        on_progress: PushProgress | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Adapter:
        """Sends an adapter from a local directory, has it loaded, and gives it a share of an alias's requests.

        An upload that was interrupted goes on where it ended, also from another process. Without a `name` the adapter
        gets one from the alias, or the directory, and its version. `alias` then sends `weight` percent of its requests
        to it, and shares the rest among the others as before; one that is not set yet sends all. Raises what `load`
        raises, FileNotFoundError and ValueError.
        """
        check_weight(weight)
        deadline = self._caller.deadline(timeout, _SETTLE_TIMEOUT)
        with LocalAdapter(directory) as local:
            source = upload(self._caller, self._stub.UploadAdapter, local, deadline, on_progress)
            name = name or local.name(alias)
        options = {"base_model": base_model, "pinned": pinned, "request_id": request_id}
        adapter = self.load(name, source, timeout=deadline.timeout, **options)
        if alias:
            self._give_share(alias, adapter.version, weight, deadline)
        return adapter

    def unload(
        self,
        name: str,
        *,
        drain_timeout: float | None = None,
        wait: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Adapter:
        """Takes an adapter out of service. Running requests may finish for `drain_timeout` seconds (60 unless given)
        and are cancelled then. With `wait` it is out of the engine when this returns.
        """
        request = convert.unload_request(name, drain_timeout=drain_timeout)
        deadline = self._caller.deadline(timeout, _SETTLE_TIMEOUT + (drain_timeout or 0.0))
        adapter = self._change(self._stub.UnloadAdapter, request, deadline.timeout, request_id)
        return self._settled(adapter, deadline.timeout) if wait else adapter

    def list(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> Iterator[Adapter]:
        """All adapters, ordered by name; pages are fetched as they are needed, each within `timeout`."""

        def fetch(token: str) -> rpc.ListAdaptersResponse:
            request = rpc.ListAdaptersRequest(page_size=page_size, page_token=token)
            return self._caller.unary(self._stub.ListAdapters, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.adapter(adapter) for adapter in page.adapters])

    def get(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Adapter:
        """One adapter. Raises AdapterNotFoundError."""
        request = rpc.GetAdapterRequest(name=name)
        response = self._caller.unary(self._stub.GetAdapter, request, timeout=timeout, request_id=request_id)
        return convert.adapter(response.adapter)

    def watch(
        self,
        names: Sequence[str] = (),
        *,
        until_settled: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AdapterWatch:
        """Follows the named adapters, or all of them. `until_settled` ends the watch once every named one is ready,
        unloaded or failed. Without `timeout` a watch has no deadline.
        """
        request = rpc.WatchAdaptersRequest(names=names, until_settled=until_settled)
        plan = self._caller.plan(math.inf if timeout is None else timeout, request_id)
        return AdapterWatch(self._stub.WatchAdapters, request, plan, convert.WatchReader())

    def set_alias(
        self,
        name: str,
        targets: Mapping[str, int],
        *,
        expected_revision: int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Alias:
        """Points an alias such as `support@prod` at adapters, by name or version, with their weights; in one step.

        With `expected_revision` (0: it is not set) it raises AliasChangedError where somebody was quicker.
        """
        request = convert.alias_request(name, targets, expected_revision=expected_revision)
        return self._alias(self._stub.SetAlias, request, timeout, request_id)

    def rollback_alias(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Alias:
        """Has an alias mean again what it meant before it was last set. Raises NothingToRollBackError."""
        return self._alias(self._stub.RollbackAlias, rpc.RollbackAliasRequest(name=name), timeout, request_id)

    def get_alias(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Alias:
        """What an alias means. Raises AliasNotFoundError."""
        return self._alias(self._stub.GetAlias, rpc.GetAliasRequest(name=name), timeout, request_id)

    def delete_alias(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Alias:
        """Forgets an alias; returns what it meant."""
        return self._alias(self._stub.DeleteAlias, rpc.DeleteAliasRequest(name=name), timeout, request_id)

    def list_aliases(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> Iterator[Alias]:
        """All aliases, ordered by name; pages are fetched as they are needed, each within `timeout`."""

        def fetch(token: str) -> rpc.ListAliasesResponse:
            request = rpc.ListAliasesRequest(page_size=page_size, page_token=token)
            return self._caller.unary(self._stub.ListAliases, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.alias(alias) for alias in page.aliases])

    def _change(self, method: Rpc, request: object, timeout: float, request_id: str | None) -> Adapter:
        response = self._caller.unary(method, request, timeout=timeout, request_id=request_id)
        return convert.adapter(response.adapter)

    def _settled(self, adapter: Adapter, timeout: float) -> Adapter:
        if adapter.state.settled:
            return adapter
        # To its end: a server that ends a call just as its caller cancels it writes an error into its log.
        with self.watch([adapter.name], until_settled=True, timeout=timeout) as events:
            for event in events:
                if isinstance(event, Adapter):
                    adapter = event
        if not adapter.state.settled:
            raise convert.watch_ended(adapter.name)
        return adapter

    def _alias(self, method: Rpc, request: object, timeout: float | None, request_id: str | None) -> Alias:
        response = self._caller.unary(method, request, timeout=timeout, request_id=request_id)
        return convert.alias(response.alias)

    def _give_share(self, name: str, version: str, percent: float, deadline: Deadline) -> None:
        """Gives a version its share of an alias's requests, whoever else changes the alias meanwhile."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                present = self.get_alias(name, timeout=deadline.timeout)
            except errors.AliasNotFoundError:
                present = None
            try:
                self.set_alias(
                    name,
                    with_share(present, version, percent),
                    expected_revision=present.revision if present else 0,
                    timeout=deadline.timeout,
                )
            except errors.AliasChangedError:
                if attempt == ATTEMPTS:
                    raise
            else:
                return


class AsyncAdaptersClient:
    """Adapters for asyncio; each method does what its namesake in `AdaptersClient` does."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self._stub = AdaptersServiceStub(caller.channel)

    async def load(
        self,
        name: str,
        source: str | Path,
        *,
        base_model: str = "",
        pinned: bool = False,
        wait: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Adapter:
        """See `AdaptersClient.load`."""
        request = convert.load_request(name, source, base_model=base_model, pinned=pinned)
        deadline = self._caller.deadline(timeout, _SETTLE_TIMEOUT)
        adapter = await self._change(self._stub.LoadAdapter, request, deadline.timeout, request_id)
        if not wait:
            return adapter
        return convert.check_loaded(await self._settled(adapter, deadline.timeout))

    async def push(
        self,
        directory: str | Path,
        *,
        name: str = "",
        alias: str = "",
        weight: float = 100.0,
        base_model: str = "",
        pinned: bool = False,
        on_progress: PushProgress | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Adapter:
        """See `AdaptersClient.push`."""
        check_weight(weight)
        deadline = self._caller.deadline(timeout, _SETTLE_TIMEOUT)
        with await asyncio.to_thread(LocalAdapter, directory) as local:
            source = await upload_async(self._caller, self._stub.UploadAdapter, local, deadline, on_progress)
            name = name or local.name(alias)
        options = {"base_model": base_model, "pinned": pinned, "request_id": request_id}
        adapter = await self.load(name, source, timeout=deadline.timeout, **options)
        if alias:
            await self._give_share(alias, adapter.version, weight, deadline)
        return adapter

    async def unload(
        self,
        name: str,
        *,
        drain_timeout: float | None = None,
        wait: bool = True,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Adapter:
        """See `AdaptersClient.unload`."""
        request = convert.unload_request(name, drain_timeout=drain_timeout)
        deadline = self._caller.deadline(timeout, _SETTLE_TIMEOUT + (drain_timeout or 0.0))
        adapter = await self._change(self._stub.UnloadAdapter, request, deadline.timeout, request_id)
        return await self._settled(adapter, deadline.timeout) if wait else adapter

    def list(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[Adapter]:
        """See `AdaptersClient.list`."""

        async def fetch(token: str) -> rpc.ListAdaptersResponse:
            request = rpc.ListAdaptersRequest(page_size=page_size, page_token=token)
            return await self._caller.unary(self._stub.ListAdapters, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.adapter(adapter) for adapter in page.adapters])

    async def get(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Adapter:
        """See `AdaptersClient.get`."""
        request = rpc.GetAdapterRequest(name=name)
        response = await self._caller.unary(self._stub.GetAdapter, request, timeout=timeout, request_id=request_id)
        return convert.adapter(response.adapter)

    def watch(
        self,
        names: Sequence[str] = (),
        *,
        until_settled: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncAdapterWatch:
        """See `AdaptersClient.watch`; not awaited."""
        request = rpc.WatchAdaptersRequest(names=names, until_settled=until_settled)
        plan = self._caller.plan(math.inf if timeout is None else timeout, request_id)
        return AsyncAdapterWatch(self._stub.WatchAdapters, request, plan, convert.WatchReader())

    async def set_alias(
        self,
        name: str,
        targets: Mapping[str, int],
        *,
        expected_revision: int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Alias:
        """See `AdaptersClient.set_alias`."""
        request = convert.alias_request(name, targets, expected_revision=expected_revision)
        return await self._alias(self._stub.SetAlias, request, timeout, request_id)

    async def rollback_alias(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Alias:
        """See `AdaptersClient.rollback_alias`."""
        return await self._alias(self._stub.RollbackAlias, rpc.RollbackAliasRequest(name=name), timeout, request_id)

    async def get_alias(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Alias:
        """See `AdaptersClient.get_alias`."""
        return await self._alias(self._stub.GetAlias, rpc.GetAliasRequest(name=name), timeout, request_id)

    async def delete_alias(self, name: str, *, timeout: float | None = None, request_id: str | None = None) -> Alias:
        """See `AdaptersClient.delete_alias`."""
        return await self._alias(self._stub.DeleteAlias, rpc.DeleteAliasRequest(name=name), timeout, request_id)

    def list_aliases(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[Alias]:
        """See `AdaptersClient.list_aliases`."""

        async def fetch(token: str) -> rpc.ListAliasesResponse:
            request = rpc.ListAliasesRequest(page_size=page_size, page_token=token)
            return await self._caller.unary(self._stub.ListAliases, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.alias(alias) for alias in page.aliases])

    async def _change(self, method: Rpc, request: object, timeout: float, request_id: str | None) -> Adapter:
        response = await self._caller.unary(method, request, timeout=timeout, request_id=request_id)
        return convert.adapter(response.adapter)

    async def _settled(self, adapter: Adapter, timeout: float) -> Adapter:
        if adapter.state.settled:
            return adapter
        # To its end: a server that ends a call just as its caller cancels it writes an error into its log.
        async with self.watch([adapter.name], until_settled=True, timeout=timeout) as events:
            async for event in events:
                if isinstance(event, Adapter):
                    adapter = event
        if not adapter.state.settled:
            raise convert.watch_ended(adapter.name)
        return adapter

    async def _alias(self, method: Rpc, request: object, timeout: float | None, request_id: str | None) -> Alias:
        response = await self._caller.unary(method, request, timeout=timeout, request_id=request_id)
        return convert.alias(response.alias)

    async def _give_share(self, name: str, version: str, percent: float, deadline: Deadline) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                present = await self.get_alias(name, timeout=deadline.timeout)
            except errors.AliasNotFoundError:
                present = None
            try:
                await self.set_alias(
                    name,
                    with_share(present, version, percent),
                    expected_revision=present.revision if present else 0,
                    timeout=deadline.timeout,
                )
            except errors.AliasChangedError:
                if attempt == ATTEMPTS:
                    raise
            else:
                return
