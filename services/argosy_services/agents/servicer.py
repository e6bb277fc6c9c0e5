"""AgentsService of the schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from argosy.api.agents.v1 import agents_service_pb2 as pb
from argosy_services.agents import convert
from argosy_services.agents.service import AgentsService
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate
from argosy_services.rpc.paging import page


class AgentsServicer:
    """Reads requests, asks the service, writes responses."""

    SERVICE = "argosy.api.agents.v1.AgentsService"

    def __init__(self, service: AgentsService, gate: Gate, auth: Authenticator) -> None:
        self._service = service
        self.gate = gate
        self.auth = auth

    @stream(pb.RunAgentResponse)
    async def RunAgent(self, request: pb.RunAgentRequest, call: Call) -> AsyncIterator[pb.RunAgentResponse]:
        sequence = 0
        async with aclosing(self._service.run(convert.read_spec(request.spec), tenant=call.tenant)) as events:
            async for event in events:
                sequence += 1
                yield convert.write_event(event, sequence)

    @unary(pb.ListToolsResponse)
    async def ListTools(self, request: pb.ListToolsRequest, call: Call) -> pb.ListToolsResponse:
        tools, next_token = page(
            self._service.tools(), lambda tool: tool.name, size=request.page_size, token=request.page_token
        )
        return pb.ListToolsResponse(tools=map(convert.write_tool, tools), next_page_token=next_token)
