"""AdaptersService of the schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypedDict

from argosy.api.adapters.v1 import adapters_service_pb2 as pb
from argosy_services.adapters.convert import read_seconds, write_adapter, write_alias
from argosy_services.adapters.forms import MAX_TARGETS
from argosy_services.adapters.service import DEFAULT_DRAIN_S, AdaptersService
from argosy_services.adapters.types import AdapterRecord
from argosy_services.adapters.uploads import Part
from argosy_services.errors import invalid_field
from argosy_services.rpc import validate
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate
from argosy_services.rpc.paging import page

_MAX_NAMES = 1_000


class AdaptersServicer:
    """Reads requests, asks the service, writes responses."""

    SERVICE = "argosy.api.adapters.v1.AdaptersService"

    def __init__(self, service: AdaptersService, gate: Gate, auth: Authenticator) -> None:
        self._service = service
        self.gate = gate
        self.auth = auth

    @unary(pb.LoadAdapterResponse)
    async def LoadAdapter(self, request: pb.LoadAdapterRequest, call: Call) -> pb.LoadAdapterResponse:
        record = await self._service.load(
            request.name, request.source, request.base_model, pinned=request.pinned, **_sender(call)
        )
        return pb.LoadAdapterResponse(adapter=write_adapter(record))

    @unary(pb.UnloadAdapterResponse)
    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, call: Call) -> pb.UnloadAdapterResponse:
        given = request.HasField("drain_timeout")
        drain_s = read_seconds(request.drain_timeout) if given else DEFAULT_DRAIN_S
        record = await self._service.unload(_name(request.name), drain_s, **_sender(call))
        return pb.UnloadAdapterResponse(adapter=write_adapter(record))

    @unary(pb.ListAdaptersResponse)
    async def ListAdapters(self, request: pb.ListAdaptersRequest, call: Call) -> pb.ListAdaptersResponse:
        records, token = page(
            self._service.records(), lambda record: record.name, size=request.page_size, token=request.page_token
        )
        return pb.ListAdaptersResponse(adapters=map(write_adapter, records), next_page_token=token)

    @unary(pb.GetAdapterResponse)
    async def GetAdapter(self, request: pb.GetAdapterRequest, call: Call) -> pb.GetAdapterResponse:
        return pb.GetAdapterResponse(adapter=write_adapter(self._service.get(_name(request.name))))

    @stream(pb.WatchAdaptersResponse, watch=True)
    async def WatchAdapters(
        self, request: pb.WatchAdaptersRequest, call: Call
    ) -> AsyncIterator[pb.WatchAdaptersResponse]:
        if request.names:
            validate.count("names", len(request.names), limit=_MAX_NAMES)
        async with aclosing(self._service.watch(request.names, until_settled=request.until_settled)) as events:
            async for event in events:
                if isinstance(event, AdapterRecord):
                    yield pb.WatchAdaptersResponse(adapter=write_adapter(event))
                else:
                    yield pb.WatchAdaptersResponse(snapshot_complete=pb.SnapshotComplete(revision=event.revision))

    @unary(pb.UploadAdapterResponse)
    async def UploadAdapter(self, request: pb.UploadAdapterRequest, call: Call) -> pb.UploadAdapterResponse:
        upload = await self._service.upload(
            Part(request.version, request.config_bytes, request.weights_bytes, request.offset, request.data)
        )
        return pb.UploadAdapterResponse(received_bytes=upload.received, source=upload.source or "")

    @unary(pb.SetAliasResponse)
    async def SetAlias(self, request: pb.SetAliasRequest, call: Call) -> pb.SetAliasResponse:
        validate.count("targets", len(request.targets), limit=MAX_TARGETS)
        targets = {choice.adapter: choice.weight for choice in request.targets}
        if len(targets) < len(request.targets):
            raise invalid_field("targets", "name one adapter twice", limit="each once", value=len(request.targets))
        expected = request.expected_revision if request.HasField("expected_revision") else None
        record = await self._service.set_alias(_name(request.name), targets, expected=expected, **_sender(call))
        return pb.SetAliasResponse(alias=write_alias(record))

    @unary(pb.RollbackAliasResponse)
    async def RollbackAlias(self, request: pb.RollbackAliasRequest, call: Call) -> pb.RollbackAliasResponse:
        record = await self._service.roll_back(_name(request.name), **_sender(call))
        return pb.RollbackAliasResponse(alias=write_alias(record))

    @unary(pb.GetAliasResponse)
    async def GetAlias(self, request: pb.GetAliasRequest, call: Call) -> pb.GetAliasResponse:
        return pb.GetAliasResponse(alias=write_alias(await self._service.alias(_name(request.name))))

    @unary(pb.ListAliasesResponse)
    async def ListAliases(self, request: pb.ListAliasesRequest, call: Call) -> pb.ListAliasesResponse:
        records, token = page(
            await self._service.aliases(),
            lambda record: record.name,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListAliasesResponse(aliases=map(write_alias, records), next_page_token=token)

    @unary(pb.DeleteAliasResponse)
    async def DeleteAlias(self, request: pb.DeleteAliasRequest, call: Call) -> pb.DeleteAliasResponse:
        record = await self._service.delete_alias(_name(request.name), **_sender(call))
        return pb.DeleteAliasResponse(alias=write_alias(record))


class _Sender(TypedDict):
    tenant: str
    request_id: str


def _sender(call: Call) -> _Sender:
    return {"tenant": call.tenant, "request_id": call.request_id}


def _name(name: str) -> str:
    if not name:
        raise invalid_field("name", "is required", limit="the name of an adapter or alias", value=name)
    return name
