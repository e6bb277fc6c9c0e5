"""Real servers on free ports, for tests: Argosy's own and those of programs that call it."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import SecretStr

from argosy_services.embedded import Build, EmbeddedServer, build_all
from argosy_services.settings import DatabaseSettings, Settings


class RunningFleet(Protocol):
    """Where a fleet listens, whatever runs it; each address is `host:port`."""

    @property
    def address(self) -> str: ...
    @property
    def metrics_addresses(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server listens; each address is `host:port`."""

    address: str
    metrics_address: str

    @property
    def metrics_addresses(self) -> Sequence[str]:
        """The pages of metrics: one."""
        return (self.metrics_address,)


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """Where a fleet on Ray listens."""

    settings: Settings

    @property
    def address(self) -> str:
        """The gRPC port."""
        return f"{self.settings.host}:{self.settings.port}"

    @property
    def metrics_addresses(self) -> Sequence[str]:
        """The pages of metrics: one for each replica."""
        files = sorted(self.settings.metrics_targets.glob("*.json"))
        return [address for file in files for group in json.loads(file.read_text()) for address in group["targets"]]


@asynccontextmanager
async def run_test_server(
    settings: Settings | None = None, *, build: Build = build_all
) -> AsyncIterator[RunningServer]:
    """Runs a server on the present event loop; on entry it is ready.

    The ports of `settings` are replaced by free ones, and the database by one of its own unless they name one. `build`
    makes the services; by default they are all there is,
    with the models that the settings name. Raises StartupError.
    """
    ports = {"port": 0, "metrics_port": 0}
    with _apart(settings or Settings()) as given:
        server = EmbeddedServer(given.model_copy(update=ports), build)
        try:
            await server.open()
            await server.load()
            yield RunningServer(server.address, server.metrics_address)
        finally:
            await server.close(drain_seconds=5.0)


@contextmanager
def run_test_server_in_thread(settings: Settings | None = None, *, build: Build = build_all) -> Iterator[RunningServer]:
    """The same for callers without an event loop: the server has its own, in a thread."""
    ready: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_run(settings, build, ready)), name="argosy-test-server")
    thread.start()
    try:
        running, loop, ended = ready.result()
        try:
            yield running
        finally:
            loop.call_soon_threadsafe(ended.set)
    finally:
        thread.join()


@contextmanager
def run_test_cluster(settings: Settings | None = None, *, ready_s: float = 120.0) -> Iterator[RunningCluster]:
    """A fleet on a Ray of its own on this machine; on entry all services are ready. Needs the extra "ray".

    The ports of `settings` are replaced by free ones. Raises ClusterError.
    """
    from argosy_services.cluster import local
    from argosy_services.cluster.control import Control
    from argosy_services.cluster.serve_config import serve_config

    with _apart(settings or Settings()) as given:
        names = ("http_port", "dashboard_port", "haproxy_stats_port", "haproxy_metrics_port")
        port, *ports = free_ports(1 + len(names))
        cluster = given.cluster.model_copy(update=dict(zip(names, ports, strict=True)))
        own = given.model_copy(update={"port": port, "cluster": cluster})
        with local.running(own) as ray:
            control = Control(ray.dashboard, ray.token)
            control.deploy(serve_config(own), lambda: ray.alive)
            for _ in control.follow(ready_s):
                pass
            yield RunningCluster(own)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that were free just now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def _apart(settings: Settings) -> Iterator[Settings]:
    """The settings with a database and adapters of their own, unless they name a database: what one test has loaded
    must not come back in the next.
    """
    if settings.database.dsn.get_secret_value():
        yield settings
        return
    with tempfile.TemporaryDirectory(prefix="argosy-test-") as directory:
        database = DatabaseSettings(dsn=SecretStr(f"sqlite:///{directory}/argosy.db"))
        adapters = settings.adapters.model_copy(update={"cache_dir": Path(directory, "adapter-cache")})
        yield settings.model_copy(update={"database": database, "adapters": adapters})


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it arrived. Times are in seconds since 1970; the root of a trace has an empty `parent_id`.

    `failed` says whether its status is an error, `events` are the names of its events.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: Mapping[str, Any]
    failed: bool
    events: tuple[str, ...]


class Collector:
    """A collector of traces that keeps what it is sent; `endpoint` is the value for `tracing.endpoint`."""

    def __init__(self, endpoint: str, spans: list[ReceivedSpan]) -> None:
        self.endpoint = endpoint
        self.spans = spans


@contextmanager
def run_test_collector() -> Iterator[Collector]:
    """Takes OTLP over gRPC on a free port, in threads. Needs the extra "tracing"."""
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

    spans: list[ReceivedSpan] = []

    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(map(_received, scope.spans))
            return pb.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="collector"))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Collector(f"http://127.0.0.1:{port}", spans)
    finally:
        server.stop(0).wait()


def _received(span: Any) -> ReceivedSpan:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(item) for item in found.values] if kind == "array_value" else found

    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes={item.key: plain(item.value) for item in span.attributes},
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        events=tuple(event.name for event in span.events),
    )


async def _run(
    settings: Settings | None,
    build: Build,
    ready: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]],
) -> None:
    ended = asyncio.Event()
    try:
        async with run_test_server(settings, build=build) as running:
            ready.set_result((running, asyncio.get_running_loop(), ended))
            await ended.wait()
    except Exception as error:
        if ready.done():
            raise
        ready.set_exception(error)
