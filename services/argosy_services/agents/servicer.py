"""AgentsService of the schema."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from argosy.api.agents.v1 import agents_service_pb2 as pb
from argosy_services.agents import convert
from argosy_services.agents.convert_events import Response, write_event
from argosy_services.agents.service import AgentsService
from argosy_services.agents.types import Recorded
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate
from argosy_services.rpc.paging import page, page_before


class AgentsServicer:
    """Reads requests, asks the service, writes responses."""

    SERVICE = "argosy.api.agents.v1.AgentsService"

    def __init__(self, service: AgentsService, gate: Gate, auth: Authenticator) -> None:
        self._service = service
        self.gate = gate
        self.auth = auth

    @stream(pb.RunAgentResponse)
    async def RunAgent(self, request: pb.RunAgentRequest, call: Call) -> AsyncIterator[pb.RunAgentResponse]:
        events = self._service.run(
            convert.read_spec(request.spec),
            tenant=call.tenant,
            detached=request.detached,
            stopping=self._is_stopping,
        )
        async for response in _responses(events, pb.RunAgentResponse):
            yield response

    @stream(pb.ResumeRunResponse)
    async def ResumeRun(self, request: pb.ResumeRunRequest, call: Call) -> AsyncIterator[pb.ResumeRunResponse]:
        events = self._service.resume(
            request.run_id, tenant=call.tenant, detached=request.detached, stopping=self._is_stopping
        )
        async for response in _responses(events, pb.ResumeRunResponse):
            yield response

    @stream(pb.WatchRunResponse, watch=True)
    async def WatchRun(self, request: pb.WatchRunRequest, call: Call) -> AsyncIterator[pb.WatchRunResponse]:
        events = self._service.watch(request.run_id, request.after, tenant=call.tenant)
        async for response in _responses(events, pb.WatchRunResponse):
            yield response

    @stream(pb.ReplayRunResponse)
    async def ReplayRun(self, request: pb.ReplayRunRequest, call: Call) -> AsyncIterator[pb.ReplayRunResponse]:
        events = self._service.replay(request.run_id, tenant=call.tenant)
        async for response in _responses(events, pb.ReplayRunResponse):
            yield response

    @unary(pb.GetRunResponse)
    async def GetRun(self, request: pb.GetRunRequest, call: Call) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=convert.write_info(await self._service.get(request.run_id, tenant=call.tenant)))

    @unary(pb.ListRunsResponse)
    async def ListRuns(self, request: pb.ListRunsRequest, call: Call) -> pb.ListRunsResponse:
        runs, next_token = await page_before(
            lambda before, limit: self._service.list(before=before, limit=limit, tenant=call.tenant),
            lambda run: run.run_id,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListRunsResponse(runs=map(convert.write_info, runs), next_page_token=next_token)

    @unary(pb.CancelRunResponse)
    async def CancelRun(self, request: pb.CancelRunRequest, call: Call) -> pb.CancelRunResponse:
        info = await self._service.cancel(request.run_id, tenant=call.tenant)
        return pb.CancelRunResponse(run=convert.write_info(info))

    @unary(pb.ApproveToolCallResponse)
    async def ApproveToolCall(self, request: pb.ApproveToolCallRequest, call: Call) -> pb.ApproveToolCallResponse:
        await self._service.decide(
            request.run_id, request.call_id, approved=request.approved, reason=request.reason, tenant=call.tenant
        )
        return pb.ApproveToolCallResponse()

    @unary(pb.SubmitToolResultResponse)
    async def SubmitToolResult(self, request: pb.SubmitToolResultRequest, call: Call) -> pb.SubmitToolResultResponse:
        await self._service.submit(
            request.run_id, request.call_id, request.result, is_error=request.is_error, tenant=call.tenant
        )
        return pb.SubmitToolResultResponse()

    @unary(pb.ListToolsResponse)
    async def ListTools(self, request: pb.ListToolsRequest, call: Call) -> pb.ListToolsResponse:
        tools, next_token = page(
            self._service.tools(), lambda tool: tool.name, size=request.page_size, token=request.page_token
        )
        return pb.ListToolsResponse(tools=map(convert.write_tool, tools), next_page_token=next_token)

    def _is_stopping(self) -> bool:
        return self.gate.must_end(watch=True)


async def _responses(events: AsyncGenerator[Recorded], kind: type[Response]) -> AsyncGenerator[Response]:
    async with aclosing(events):
        async for one in events:
            yield cast(Response, write_event(one, kind()))
