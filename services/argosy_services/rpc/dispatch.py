"""The table from method paths to handlers of an embedded server, complete before there are any servicers.

A server takes its port at once and loads its models afterwards. Until they are there, every RPC of the schema has a
handler that leads to the gate, which refuses with STARTING, counted, logged and with its details like any other call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from argosy.api.adapters.v1 import adapters_service_pb2
from argosy.api.agents.v1 import agents_service_pb2
from argosy.api.embeddings.v1 import embeddings_service_pb2
from argosy.api.generation.v1 import generation_service_pb2
from argosy.api.tokenization.v1 import tokenization_service_pb2
from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.context import Call
from argosy_services.rpc.endpoint import MalformedRequest, stream, unary
from argosy_services.rpc.gate import Gate

SERVICES: dict[str, ServiceDescriptor] = {
    service.full_name: service
    for file in (
        tokenization_service_pb2,
        generation_service_pb2,
        embeddings_service_pb2,
        adapters_service_pb2,
        agents_service_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
}


class MethodTable(grpc.GenericRpcHandler):
    """Finds the handler of each call. The generated `add_XServicer_to_server` functions fill it like a server."""

    def __init__(self, gate: Gate, auth: Authenticator) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        for name, service in SERVICES.items():
            absent = _Absent(name, gate, auth)
            handlers = {method.name: absent.handler(method) for method in service.methods}
            self.add_registered_method_handlers(name, handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler]
    ) -> None:
        """Puts the methods of a service in the place of those that were there."""
        for method, handler in method_handlers.items():
            self._handlers[f"/{service_name}/{method}"] = _guarded(handler)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Does nothing: generated code gives the same methods to `add_registered_method_handlers` as well."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; None where the schema has no such method."""
        return self._handlers.get(handler_call_details.method)


class _Absent:
    """Stands for the servicer of a service whose models are not loaded."""

    def __init__(self, service: str, gate: Gate, auth: Authenticator) -> None:
        self.SERVICE = service
        self.gate = gate
        self.auth = auth

    def handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler:
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)

        async def answer(self: _Absent, request: Message, call: Call) -> Message:
            raise ArgosyError(Reason.NOT_SUPPORTED, f"{self.SERVICE} is not part of this server", detail=self.SERVICE)

        async def answers(self: _Absent, request: Message, call: Call) -> AsyncIterator[Message]:
            yield await answer(self, request, call)

        answer.__name__ = answers.__name__ = method.name
        if method.server_streaming:
            rpc = stream(response)(answers).__get__(self)
            return grpc.unary_stream_rpc_method_handler(rpc, request.FromString, response.SerializeToString)
        rpc = unary(response)(answer).__get__(self)
        return grpc.unary_unary_rpc_method_handler(rpc, request.FromString, response.SerializeToString)


def _guarded(handler: Any) -> grpc.RpcMethodHandler:
    read, write = tolerant(handler.request_deserializer), handler.response_serializer
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_closing(handler.unary_stream), read, write)
    return grpc.unary_unary_rpc_method_handler(handler.unary_unary, read, write)


def tolerant(read: Callable[[bytes], Message]) -> Callable[[bytes], Message | MalformedRequest]:
    """Lets bytes that are no message reach the endpoint; grpc.aio ends such calls with UNKNOWN and no details."""

    def read_or_tell(data: bytes) -> Message | MalformedRequest:
        try:
            return read(data)
        except DecodeError as error:
            return MalformedRequest(f"the request cannot be read: {error}; text must be valid UTF-8")

    return read_or_tell


def _closing(
    behaviour: Callable[[Any, Any], AsyncGenerator[Message]],
) -> Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[None]]:
    """Closes a stream within its call's task when the client is gone; grpc.aio leaves that to the garbage collector."""

    async def write_all(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with aclosing(behaviour(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return write_all
