"""A real gRPC server in the test's process: answers as scripted, fails as told, writes down what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, message_factory
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from google.rpc import error_details_pb2, status_pb2

from argosy.api.adapters.v1 import adapters_service_pb2
from argosy.api.agents.v1 import agents_service_pb2
from argosy.api.embeddings.v1 import embeddings_service_pb2
from argosy.api.generation.v1 import generation_service_pb2
from argosy.api.tokenization.v1 import tokenization_service_pb2

SERVICES = [
    module.DESCRIPTOR.services_by_name[f"{area}Service"]
    for area, module in {
        "Tokenization": tokenization_service_pb2,
        "Generation": generation_service_pb2,
        "Embeddings": embeddings_service_pb2,
        "Adapters": adapters_service_pb2,
        "Agents": agents_service_pb2,
    }.items()
]


@dataclass
class Failure:
    """A status to end a call with, in the form that Argosy servers give it. Without a reason it is a bare status."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "scripted failure"
    metadata: dict[str, str] = field(default_factory=dict)
    field_violation: tuple[str, str] | None = None
    retry_after: float | None = None
    domain: str = "argosy"
    raw_details: bytes | None = None

    def end(self, context: grpc.ServicerContext, request_id: str) -> None:
        context.set_trailing_metadata(
            (("x-request-id", request_id), ("grpc-status-details-bin", self.raw_details or self._details()))
        )
        context.abort(self.code, self.message)

    def _details(self) -> bytes:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason:
            self._pack(
                status,
                error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata),
            )
        if self.field_violation:
            where, what = self.field_violation
            violation = error_details_pb2.BadRequest.FieldViolation(field=where, description=what, reason=self.reason)
            self._pack(status, error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.retry_after * 1e9))
            self._pack(status, retry)
        return status.SerializeToString()

    @staticmethod
    def _pack(status: status_pb2.Status, message: Message) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)


@dataclass
class Call:
    """A call that the server saw. `ended` is set when it is over, by whichever side."""

    method: str
    path: str
    request: Any
    metadata: dict[str, str]
    time_remaining: float | None
    started: float
    ended: threading.Event = field(default_factory=threading.Event)


Answer = Message | Failure | Iterable[Message | Failure | float] | Callable[[Any], Any]
"""One message; or what a stream does in turn: send a message, fail, or pause for so many seconds; or a function of the
request that gives either."""


class ScriptedServer:
    """Serves every RPC of the schema. `answers` holds what each method answers, `failures` what it says before that."""

    def __init__(self, port: int = 0, *, credentials: grpc.ServerCredentials | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.failures: dict[str, list[Failure]] = {}
        self.delays: dict[str, float] = {}
        self.health = 1
        self.calls: list[Call] = []
        self._methods = {f"/{service.full_name}/{rpc.name}": rpc for service in SERVICES for rpc in service.methods}
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        self._server.add_generic_rpc_handlers((_Handler(self),))
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> ScriptedServer:
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    def calls_of(self, method: str) -> list[Call]:
        return [call for call in self.calls if call.method == method]

    def handler(self, path: str) -> grpc.RpcMethodHandler | None:
        if path == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(
                self._answer_health, StringValue.FromString, Int32Value.SerializeToString
            )
        rpc = self._methods.get(path)
        if rpc is None:
            return None
        request = message_factory.GetMessageClass(rpc.input_type)
        response = message_factory.GetMessageClass(rpc.output_type)
        make = grpc.unary_stream_rpc_method_handler if rpc.server_streaming else grpc.unary_unary_rpc_method_handler
        behaviour = self._stream if rpc.server_streaming else self._unary
        return make(
            lambda message, context: behaviour(path, message, context), request.FromString, response.SerializeToString
        )

    def _answer_health(self, request: StringValue, context: grpc.ServicerContext) -> Int32Value:
        self._record("/grpc.health.v1.Health/Check", request.value, context)
        return Int32Value(value=self.health)

    def _unary(self, path: str, request: Any, context: grpc.ServicerContext) -> Any:
        call = self._begin(path, request, context)
        answer = self._answer(call)
        if isinstance(answer, Failure):
            answer.end(context, call.metadata.get("x-request-id", ""))
        return answer

    def _stream(self, path: str, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        call = self._begin(path, request, context)
        for step in self._answer(call):
            if isinstance(step, Failure):
                step.end(context, call.metadata.get("x-request-id", ""))
            elif isinstance(step, float):
                call.ended.wait(step)
            else:
                yield step

    def _begin(self, path: str, request: Any, context: grpc.ServicerContext) -> Call:
        call = self._record(path, request, context)
        if pending := self.failures.get(call.method):
            pending.pop(0).end(context, call.metadata.get("x-request-id", ""))
        call.ended.wait(self.delays.get(call.method, 0.0))
        return call

    def _answer(self, call: Call) -> Any:
        answer = self.answers[call.method]
        return answer(call.request) if callable(answer) else answer

    def _record(self, path: str, request: Any, context: grpc.ServicerContext) -> Call:
        remaining = context.time_remaining()
        call = Call(
            method=path.rpartition("/")[2],
            path=path,
            request=request,
            metadata={key: value for key, value in context.invocation_metadata() if isinstance(value, str)},
            # Without a deadline grpc tells of a time far away.
            time_remaining=remaining if remaining is not None and remaining < 1e8 else None,
            started=time.monotonic(),
        )
        context.add_callback(call.ended.set)
        self.calls.append(call)
        return call


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._server.handler(handler_call_details.method)
