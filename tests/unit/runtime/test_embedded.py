"""The embedded server from the first byte to the last, through the wire."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from argosy.api.adapters.v1 import adapters_service_pb2 as adapters_pb
from argosy.api.adapters.v1 import adapters_service_pb2_grpc as adapters_grpc
from argosy.api.agents.v1 import agents_service_pb2 as agents_pb
from argosy.api.agents.v1 import agents_service_pb2_grpc as agents_grpc
from argosy.api.embeddings.v1 import embeddings_service_pb2 as pb
from argosy.api.embeddings.v1 import embeddings_service_pb2_grpc as pb_grpc
from argosy_services.embedded import EmbeddedServer, StartupError
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.errors import DamagedModelError
from argosy_services.rpc.dispatch import SERVICES
from argosy_services.rpc.status import DETAILS_KEY
from argosy_services.settings import Settings
from argosy_services.testing import run_test_server, run_test_server_in_thread

from .small_fleet import SmallFleet

HEALTH = "grpc.health.v1.Health"
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
# Self-signed for localhost, valid for a hundred years, used nowhere else.
CERTIFICATE = Path(__file__).parent / "tls/certificate.pem"
KEY = Path(__file__).parent / "tls/key.pem"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def reason(error: grpc.aio.AioRpcError) -> str:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())[DETAILS_KEY])
    return error_details_pb2.ErrorInfo.FromString(status.details[0].value).reason


def has_retry_info(error: grpc.aio.AioRpcError) -> bool:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())[DETAILS_KEY])
    return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)


@asynccontextmanager
async def opened(server: EmbeddedServer) -> AsyncIterator[grpc.aio.Channel]:
    await server.open()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield channel
    finally:
        await server.close(0)


async def check(channel: grpc.aio.Channel, service: str) -> int:
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_calls_are_refused_until_the_models_are_loaded(settings: Settings, fleet: SmallFleet) -> None:
    loaded = threading.Event()

    def build(_: Settings) -> SmallFleet:
        loaded.wait()
        return fleet

    server = EmbeddedServer(settings, build)
    async with opened(server) as channel:
        loading = asyncio.create_task(server.load())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason(caught.value) == "STARTING"
        assert has_retry_info(caught.value)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_all(agents_grpc.AgentsServiceStub(channel).RunAgent(agents_pb.RunAgentRequest()))
        assert reason(caught.value) == "STARTING"
        assert [await check(channel, name) for name in ("", *SERVICES)] == [NOT_SERVING] * 6
        assert "argosy_ready 0.0" in await metrics_of(server)

        loaded.set()
        await loading
        assert fleet.life == ["started"]
        answer = await pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest(model="m"))
        assert answer.model == "m"
        assert [await check(channel, name) for name in ("", *SERVICES)] == [SERVING] * 6
        assert "argosy_ready 1.0" in await metrics_of(server)
    assert fleet.life == ["started", "closed"]


async def metrics_of(server: EmbeddedServer) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=5) as answer:
            return answer.read().decode()

    return await asyncio.to_thread(read)


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass


async def test_every_method_of_the_schema_is_known_from_the_start(settings: Settings, fleet: SmallFleet) -> None:
    async with opened(EmbeddedServer(settings, lambda _: fleet)) as channel:
        for service in SERVICES.values():
            for method in service.methods:
                kind = channel.unary_stream if method.server_streaming else channel.unary_unary
                call = kind(f"/{service.full_name}/{method.name}")(b"", timeout=5)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (_read_all(call) if method.server_streaming else call)
                assert reason(caught.value) == "STARTING", method.full_name
            unknown = channel.unary_unary(f"/{service.full_name}/Unknown")(b"", timeout=5)
            assert await unknown.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_that_the_fleet_lacks_says_so(settings: Settings, fleet: SmallFleet) -> None:
    async with (
        run_test_server(settings, build=lambda _: fleet) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agents_grpc.AgentsServiceStub(channel).ListTools(agents_pb.ListToolsRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert reason(caught.value) == "NOT_SUPPORTED"


async def test_reflection_lists_and_describes_every_service(settings: Settings, fleet: SmallFleet) -> None:
    async with run_test_server(settings, build=lambda _: fleet) as running:

        def reflect() -> tuple[set[str], list[str]]:
            with grpc.insecure_channel(running.address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                described = [database.FindFileContainingSymbol(name).name for name in SERVICES]
                return set(database.get_services()), described

        services, files = await asyncio.to_thread(reflect)
    assert services == {*SERVICES, HEALTH, REFLECTION}
    assert files == [service.file.name for service in SERVICES.values()]


async def test_messages_are_bounded_both_ways(fleet: SmallFleet) -> None:
    settings = Settings(port=0, metrics_port=0, max_message_bytes=1 << 16)
    async with (
        run_test_server(settings, build=lambda _: fleet) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = pb_grpc.EmbeddingsServiceStub(channel)
        await stub.Embed(pb.EmbedRequest(texts=["x" * 60_000]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(texts=["x" * 70_000]))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_drain_lets_calls_finish_and_refuses_new_ones(settings: Settings, fleet: SmallFleet) -> None:
    server = EmbeddedServer(settings, lambda _: fleet)
    await server.open()
    await server.load()
    fleet.go.clear()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.EmbeddingsServiceStub(channel)
        running = stub.Embed(pb.EmbedRequest(model="held"))
        watch = aiter(adapters_grpc.AdaptersServiceStub(channel).WatchAdapters(adapters_pb.WatchAdaptersRequest()))
        await anext(watch)
        health = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()))
        assert (await anext(health)).status == SERVING
        while not server.gate.running:
            await asyncio.sleep(0.01)

        closing = asyncio.create_task(server.close(30))
        assert (await anext(health)).status == NOT_SERVING
        assert await anext(watch) == adapters_pb.WatchAdaptersResponse()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(watch)
        assert reason(caught.value) == "DRAINING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason(caught.value) == "DRAINING"
        assert not closing.done()
        assert fleet.life == ["started"]

        fleet.go.set()
        assert (await running).model == "held"
        await closing
        assert fleet.life == ["started", "closed"]
        # The watch ended with the server, not by being cut.
        assert [state async for state in health] == []


async def test_what_is_not_finished_in_time_is_cut_off(settings: Settings, fleet: SmallFleet) -> None:
    server = EmbeddedServer(settings, lambda _: fleet)
    await server.open()
    await server.load()
    fleet.go.clear()
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest())
        while not server.gate.running:
            await asyncio.sleep(0.01)
        await server.close(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert reason(caught.value) == "DRAINING"
    assert fleet.life == ["started", "closed"]


async def test_a_taken_port_is_a_clear_error(settings: Settings, fleet: SmallFleet) -> None:
    async with run_test_server(settings, build=lambda _: fleet) as running:
        port = int(running.address.rpartition(":")[2])
        metrics_port = int(running.metrics_address.rpartition(":")[2])
        for taken, variable in (
            ({"port": port, "metrics_port": 0}, "ARGOSY_PORT"),
            ({"port": 0, "metrics_port": metrics_port}, "ARGOSY_METRICS_PORT"),
        ):
            second = EmbeddedServer(Settings.model_validate(taken), lambda _: fleet)
            with pytest.raises(StartupError, match=f"(?s)already in use.*{variable}"):
                await second.open()
            await second.close(0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ArgosyError(Reason.MODEL_NOT_FOUND, "no model 'x'; fetch it with `argosy models pull x`"),
            "cannot load the models: no model 'x'; fetch it with `argosy models pull x`",
        ),
        (
            DamagedModelError("file x is missing; fetch it again with `argosy models pull x`"),
            "cannot load the models: file x is missing; fetch it again with `argosy models pull x`",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "install them with `pip install 'argosy[services]'`",
        ),
        (ModuleNotFoundError("No module named 'argosy_services.x'", name="argosy_services.x"), "argosy_services.x"),
        (ValueError("header too large"), "ValueError: header too large; check their files with `argosy models verify`"),
    ],
)
async def test_a_failed_load_says_what_to_do(settings: Settings, error: Exception, message: str) -> None:
    def build(_: Settings) -> Any:
        raise error

    server = EmbeddedServer(settings, build)
    async with opened(server):
        with pytest.raises(StartupError) as caught:
            await server.load()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_with_a_certificate_the_port_speaks_tls(fleet: SmallFleet) -> None:
    settings = Settings(port=0, metrics_port=0, tls_certificate=CERTIFICATE, tls_key=KEY)
    async with run_test_server(settings, build=lambda _: fleet) as running:
        trusted = grpc.ssl_channel_credentials(CERTIFICATE.read_bytes())
        named = (("grpc.ssl_target_name_override", "localhost"),)
        async with grpc.aio.secure_channel(running.address, trusted, options=named) as channel:
            assert (await pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest(model="m"))).model == "m"
        async with grpc.aio.insecure_channel(running.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest(), timeout=2)
            assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("broken", ["missing", "garbage"])
async def test_a_certificate_that_cannot_be_used_is_a_clear_error(
    fleet: SmallFleet, tmp_path: Path, broken: str
) -> None:
    path = tmp_path / "certificate.pem"
    if broken == "garbage":
        path.write_text("garbage")
    settings = Settings(port=0, metrics_port=0, tls_certificate=path, tls_key=KEY)
    server = EmbeddedServer(settings, lambda _: fleet)
    with pytest.raises(StartupError, match=r"ARGOSY_TLS_CERTIFICATE"):
        await server.open()
    await server.close(0)


def test_a_server_in_a_thread_serves_callers_without_a_loop(settings: Settings) -> None:
    fleet = SmallFleet()
    with run_test_server_in_thread(settings, build=lambda _: fleet) as running:
        with grpc.insecure_channel(running.address) as channel:
            assert pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest(model="m"), timeout=5).model == "m"
        with urllib.request.urlopen(f"http://{running.metrics_address}/metrics", timeout=5) as answer:
            assert b"argosy_rpc_total" in answer.read()
    assert fleet.life == ["started", "closed"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://{running.metrics_address}/metrics", timeout=5)


def test_a_server_in_a_thread_hands_its_failure_on(settings: Settings) -> None:
    def build(_: Settings) -> Any:
        raise ArgosyError(Reason.MODEL_NOT_FOUND, "no model")

    with pytest.raises(StartupError, match="no model"), run_test_server_in_thread(settings, build=build):
        pass


async def test_a_failed_engine_is_seen_from_outside(settings: Settings, fleet: SmallFleet) -> None:
    server = EmbeddedServer(settings, lambda _: fleet)
    async with opened(server) as channel:
        await server.load()
        assert await check(channel, "") == SERVING
        watching = adapters_grpc.AdaptersServiceStub(channel).WatchAdapters(adapters_pb.WatchAdaptersRequest())
        fleet.healthy = False
        await asyncio.wait_for(server.failed.wait(), 10)
        assert await check(channel, "") == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in watching:
                pass
        assert reason(caught.value) == "DRAINING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.EmbeddingsServiceStub(channel).Embed(pb.EmbedRequest())
        assert reason(caught.value) == "DRAINING"
