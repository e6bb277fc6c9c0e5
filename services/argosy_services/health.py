"""The standard health service (grpc.health.v1): "" stands for the whole server, full names for single services.

The servicer that grpcio-health-checking brings forgets all watchers of a service when one of them leaves, and its
watches outlast a shutdown; load balancers need both to be right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """Answers whether services take calls. All of them do, or none: they share one gate. Lives on the event loop."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = ("", *services)
        self._serving = False
        self._ended = False
        self._changed = asyncio.Condition()

    async def set_serving(self, serving: bool) -> None:
        """Tells checks and watchers whether the services take calls."""
        async with self._changed:
            self._serving = serving
            self._changed.notify_all()

    async def end_watches(self) -> None:
        """Lets every watch send its last state and end."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The present state of a service. NOT_FOUND: no such service."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service '{request.service[:100]}' here")
        return self._state(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state of a service, now and whenever it changes. SERVICE_UNKNOWN: no such service."""
        while True:
            state = self._state(request.service)
            yield state
            async with self._changed:
                while not self._ended and self._state(request.service) == state:
                    await self._changed.wait()
            if self._state(request.service) == state:
                return

    def _state(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.SERVING if self._serving else _Status.NOT_SERVING)
