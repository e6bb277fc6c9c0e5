"""What Argosy adds to Ray Serve's gRPC servers: the standard health service, and no callers from other machines.

Ray Serve calls each of its `grpc_servicer_functions` with a servicer and the server before that starts. This is not
part of its public interface, so Ray is pinned, and the contract tests look at the result.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.serve.schema import ApplicationStatus
from ray.util import get_node_ip_address

from argosy_services.rpc.dispatch import SERVICES, tolerant
from argosy_services.settings import Settings, is_loopback

_Status = health_pb2.HealthCheckResponse
_FRESH_S = 0.5
_APPLICATIONS = {name: name.split(".")[2] for name in SERVICES}
_SERVING = (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING)


def install(_servicer: object, server: Any) -> None:
    """Adds health to a server of Ray Serve; comes first in `grpc_servicer_functions`, before the services."""
    settings = Settings()
    if is_loopback(settings.host):
        # Ray Serve listens on every address whatever it is told. HAProxy comes by the node's own.
        server.service_handler_factory = _local_only(server.service_handler_factory, get_node_ip_address())
    _read_tolerantly(server)
    server.add_passthrough_service(health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    health_pb2_grpc.add_HealthServicer_to_server(ClusterHealth(), server)


class ClusterHealth(health_pb2_grpc.HealthServicer):
    """Health of the services as the cluster's controller sees them: an application with a replica that runs serves."""

    def __init__(self) -> None:
        self._seen: dict[str, bool] = {}
        self._seen_at = float("-inf")
        self._asking = asyncio.Lock()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The present state of a service, "" for all of them. NOT_FOUND: no such service."""
        if request.service not in ("", *SERVICES):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service '{request.service[:100]}' here")
        return await self._state(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """The state of a service, now and whenever it changes. SERVICE_UNKNOWN: no such service."""
        told = None
        while True:
            state = await self._state(request.service)
            if state != told:
                told = state
                yield state
            await asyncio.sleep(1.0)

    async def _state(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in ("", *SERVICES):
            return _Status(status=_Status.SERVICE_UNKNOWN)
        async with self._asking:
            if time.monotonic() - self._seen_at > _FRESH_S:
                self._seen = await asyncio.to_thread(_serving_applications)
                self._seen_at = time.monotonic()
        wanted = [_APPLICATIONS[service]] if service else list(_APPLICATIONS.values())
        serving = all(self._seen.get(application, False) for application in wanted)
        return _Status(status=_Status.SERVING if serving else _Status.NOT_SERVING)


def _read_tolerantly(server: Any) -> None:
    """Lets bytes that are no message reach the service, which refuses them with a reason."""
    inner = server._override_method_handler

    def override(service_method: str, method_handler: Any) -> Any:
        handler = inner(service_method, method_handler)
        return handler._replace(request_deserializer=tolerant(handler.request_deserializer))

    server._override_method_handler = override


def _serving_applications() -> dict[str, bool]:
    return {
        name: application.status in _SERVING
        and all(
            deployment.replica_states.get(ReplicaState.RUNNING, 0) > 0
            for deployment in application.deployments.values()
        )
        and bool(application.deployments)
        for name, application in serve.status().applications.items()
    }


def _local_only(inner: Callable[..., Any], own_address: str) -> Callable[..., Any]:
    """Has handlers refuse callers on other machines, as a server on the loopback does."""

    async def check(context: Any) -> None:
        peer = context.peer() or ""
        family, _, address = peer.partition(":")
        host = address.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", "")
        if family != "unix" and host != own_address and not is_loopback(host):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "this fleet serves its own machine; set ARGOSY_HOST and ARGOSY_API_KEYS to serve others",
            )

    def factory(service_method: str, streaming_type: Any) -> Any:
        handler = inner(service_method=service_method, streaming_type=streaming_type)
        if inspect.isasyncgenfunction(handler):

            async def stream(request: Any, context: Any) -> None:
                await check(context)
                async with aclosing(handler(request, context)) as messages:
                    async for message in messages:
                        await context.write(message)

            return stream

        async def unary(request: Any, context: Any) -> Any:
            await check(context)
            return await handler(request, context)

        return unary

    return factory
