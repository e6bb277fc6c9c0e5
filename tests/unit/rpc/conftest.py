"""A real server with a small servicer whose methods do what a test tells them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import structlog

from argosy.api.adapters.v1 import adapters_service_pb2 as adapters_pb
from argosy.api.agents.v1 import agents_service_pb2 as agents_pb
from argosy.api.embeddings.v1 import embeddings_service_pb2 as embeddings_pb
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.dispatch import MethodTable
from argosy_services.rpc.endpoint import stream, unary
from argosy_services.rpc.gate import Gate

KEY = "a-key-for-tests"


async def _echo(request: Any, call: Call) -> Any:
    return embeddings_pb.EmbedResponse(model=request.model)


async def _three(request: Any, call: Call) -> AsyncIterator[Any]:
    for number in (1, 2, 3):
        yield agents_pb.RunAgentResponse(sequence=number)


async def _nothing(request: Any, call: Call) -> AsyncIterator[Any]:
    return
    yield


class ScriptedServicer:
    """One unary method, one stream and one watch, over messages of the real schema."""

    SERVICE = "argosy.test.v1.ScriptedService"

    def __init__(self, gate: Gate, auth: Authenticator) -> None:
        self.gate = gate
        self.auth = auth
        self.answer: Callable[[Any, Call], Awaitable[Any]] = _echo
        self.answers: Callable[[Any, Call], AsyncIterator[Any]] = _three
        self.changes: Callable[[Any, Call], AsyncIterator[Any]] = _nothing

    @unary(embeddings_pb.EmbedResponse)
    async def Ask(self, request: Any, call: Call) -> Any:
        return await self.answer(request, call)

    @stream(agents_pb.RunAgentResponse)
    async def Tell(self, request: Any, call: Call) -> AsyncIterator[Any]:
        async for event in self.answers(request, call):
            yield event

    @stream(adapters_pb.WatchAdaptersResponse, watch=True)
    async def Watch(self, request: Any, call: Call) -> AsyncIterator[Any]:
        async for event in self.changes(request, call):
            yield event

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        ask, tell, watch = embeddings_pb.EmbedRequest, agents_pb.RunAgentRequest, adapters_pb.WatchAdaptersRequest
        return {
            "Ask": grpc.unary_unary_rpc_method_handler(
                self.Ask, ask.FromString, embeddings_pb.EmbedResponse.SerializeToString
            ),
            "Tell": grpc.unary_stream_rpc_method_handler(
                self.Tell, tell.FromString, agents_pb.RunAgentResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch, watch.FromString, adapters_pb.WatchAdaptersResponse.SerializeToString
            ),
        }


@dataclass
class Wire:
    """A running server, its servicer and a channel to it."""

    servicer: ScriptedServicer
    gate: Gate
    channel: grpc.aio.Channel
    address: str
    metadata: tuple[tuple[str, str], ...] = field(default=(("authorization", f"Bearer {KEY}"),))

    def ask(self, request: bytes = b"", **options: Any) -> Any:
        method = self.channel.unary_unary(
            f"/{ScriptedServicer.SERVICE}/Ask", response_deserializer=embeddings_pb.EmbedResponse.FromString
        )
        return method(request, **{"metadata": self.metadata, **options})

    def tell(self, request: bytes = b"", **options: Any) -> Any:
        method = self.channel.unary_stream(
            f"/{ScriptedServicer.SERVICE}/Tell", response_deserializer=agents_pb.RunAgentResponse.FromString
        )
        return method(request, **{"metadata": self.metadata, **options})

    def watch(self, request: bytes = b"", **options: Any) -> Any:
        method = self.channel.unary_stream(
            f"/{ScriptedServicer.SERVICE}/Watch", response_deserializer=adapters_pb.WatchAdaptersResponse.FromString
        )
        return method(request, **{"metadata": self.metadata, **options})


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    # Other tests run whole servers in this process, which set a level of their own.
    structlog.reset_defaults()
    gate, auth = Gate(), Authenticator([KEY])
    servicer = ScriptedServicer(gate, auth)
    table = MethodTable(gate, auth)
    table.add_registered_method_handlers(ScriptedServicer.SERVICE, servicer.handlers())
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((table,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    gate.open()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Wire(servicer, gate, channel, address)
    await server.stop(0)
