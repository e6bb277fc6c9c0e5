"""Health: checks and watches, several at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from argosy_services.health import Health

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def health() -> Health:
    return Health(["a.A", "b.B"])


@pytest.fixture
async def stub(health: Health) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(0)


def request(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_a_check_tells_the_present_state(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
    assert (await stub.Check(request("a.A"))).status == Status.NOT_SERVING
    await health.set_serving(True)
    assert (await stub.Check(request("a.A"))).status == Status.SERVING
    assert (await stub.Check(request())).status == Status.SERVING


async def test_an_unknown_service_is_not_found(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(request("x.X"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = aiter(stub.Watch(request("x.X")))
    assert (await anext(watch)).status == Status.SERVICE_UNKNOWN


async def test_watchers_learn_of_changes_though_another_one_left(
    health: Health, stub: health_pb2_grpc.HealthStub
) -> None:
    leaving = stub.Watch(request())
    staying = aiter(stub.Watch(request()))
    async for state in leaving:
        assert state.status == Status.NOT_SERVING
        break
    await anext(staying)
    leaving.cancel()
    await asyncio.sleep(0.05)
    await health.set_serving(True)
    assert (await asyncio.wait_for(anext(staying), 2)).status == Status.SERVING


async def test_watches_end_with_the_last_state(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
    await health.set_serving(True)
    watch = aiter(stub.Watch(request("b.B")))
    assert (await anext(watch)).status == Status.SERVING
    await health.set_serving(False)
    await health.end_watches()
    assert [state.status async for state in watch] == [Status.NOT_SERVING]
