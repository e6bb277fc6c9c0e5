"""The embedded runtime: all services in one process, on one grpc.aio server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from argosy._version import __version__
from argosy_services import logs, metrics, metrics_page, process, tracing
from argosy_services.errors import ArgosyError
from argosy_services.health import Health
from argosy_services.models.errors import ModelStoreError
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.dispatch import SERVICES, MethodTable
from argosy_services.rpc.gate import Gate
from argosy_services.settings import Settings

log = structlog.get_logger("argosy.server")

# For what is on its way when the last call has ended.
_FLUSH_SECONDS = 1.0
# How often a server looks whether its fleet is healthy.
_LOOK_SECONDS = 1.0


class Fleet(Protocol):
    """The services of a process, loaded but not running: what `bootstrap.build` gives."""

    def register(self, server: MethodTable, gate: Gate, auth: Authenticator) -> None:
        """Makes the servicers and adds them to `server` through the generated functions."""
        ...

    async def start(self) -> None:
        """Starts engines and background work on the running event loop."""
        ...

    async def close(self) -> None:
        """Stops all of it."""
        ...

    @property
    def healthy(self) -> bool:
        """False once something has failed that only a new process brings back."""
        ...


Build = Callable[[Settings], Fleet]


def build_all(settings: Settings) -> Fleet:
    """Loads everything that the settings name."""
    # Imports torch, which takes longer than anything else before the port answers.
    from argosy_services.bootstrap import build

    fleet = build(settings)
    process.loaded()
    return fleet


class StartupError(Exception):
    """The server cannot start; the message says why and what to do."""


class EmbeddedServer:
    """One server: `open` takes the ports, `load` makes it ready, `close` drains and ends it.

    `build` (by default `bootstrap.build`) loads the models and may block; it runs in a thread. A server lives on the
    event loop that it is opened on.
    """

    def __init__(self, settings: Settings, build: Build = build_all) -> None:
        self.settings = settings
        self.gate = Gate()
        self.address = ""
        self.metrics_address = ""
        self.loading = False
        self.failed = asyncio.Event()
        """Set once the fleet is not healthy any more. No calls are taken from then on."""
        self._build = build
        self._auth = Authenticator.of(settings)
        self._methods = MethodTable(self.gate, self._auth)
        self._health = Health(SERVICES)
        self._server: grpc.aio.Server | None = None
        self._close_metrics: Callable[[], None] | None = None
        self._fleet: Fleet | None = None
        self._tracing: tracing.Tracing | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Takes both ports; from here on calls are answered, with STARTING. Raises StartupError."""
        process.begin()
        settings = self.settings
        self._tracing = _start_tracing(settings)
        metrics.configure(settings.metrics)
        metrics.BUILD_INFO.labels(version=__version__, runtime="embedded").set(1)
        metrics.READY.set(0)
        metrics_port, self._close_metrics = _serve_metrics(settings)
        self.metrics_address = _join(settings.metrics_host, metrics_port)
        server = _make_server(settings.max_message_bytes)
        server.add_generic_rpc_handlers((self._methods,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*SERVICES, health_name, reflection.SERVICE_NAME), server)
        self.address = _listen(server, settings)
        await server.start()
        self._server = server

    async def load(self) -> None:
        """Loads the models and takes calls. Raises StartupError."""
        loader = ThreadPoolExecutor(1, thread_name_prefix="argosy-load")
        loading = asyncio.get_running_loop().run_in_executor(loader, self._build, self.settings)
        loader.shutdown(wait=False)
        self.loading = True
        try:
            self._fleet = await loading
            self.loading = False
            self._fleet.register(self._methods, self.gate, self._auth)
            await self._fleet.start()
        except Exception as error:
            self.loading = False
            raise _load_failure(error) from error
        self.gate.open()
        await self._health.set_serving(True)
        metrics.READY.set(1)
        self._watching = asyncio.create_task(self._watch(self._fleet))

    async def _watch(self, fleet: Fleet) -> None:
        while fleet.healthy:  # noqa: ASYNC110 - a thread ends it, and tells nobody
            await asyncio.sleep(_LOOK_SECONDS)
        await self._take_no_more()
        self.failed.set()

    async def _take_no_more(self) -> None:
        """Refuses new calls, and lets whoever sends them know."""
        self.gate.drain()
        metrics.READY.set(0)
        await self._health.set_serving(False)

    async def close(self, drain_seconds: float) -> None:
        """Takes no more calls, lets running ones finish for so long, then ends everything."""
        if self._watching is not None:
            self._watching.cancel()
        await self._take_no_more()
        if not await self.gate.wait_idle(drain_seconds):
            log.warning("calls cut off", calls=self.gate.running, drain_seconds=drain_seconds)
            self.gate.cut_off()
            await self.gate.wait_idle(_FLUSH_SECONDS)
        await self._health.end_watches()
        if self._server is not None:
            await self._server.stop(_FLUSH_SECONDS)
        if self._fleet is not None:
            await self._fleet.close()
        if self._close_metrics is not None:
            await asyncio.to_thread(self._close_metrics)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.stop, _FLUSH_SECONDS)


def serve(settings: Settings, build: Build = build_all) -> int:
    """Runs a server until SIGTERM or SIGINT and returns the exit code: 0, or 1 where it could not start or an engine
    has failed for good.

    A second signal ends the process at once, with 128 and the signal's number.
    """
    started = time.monotonic()
    logs.configure(settings.log_level, settings.log_format)
    log.info("starting", version=__version__, settings=settings.redacted())
    server = EmbeddedServer(settings, build)
    code = asyncio.run(_serve(server, started))
    if server.loading:
        # The thread that loads cannot be interrupted, and the interpreter would wait for it.
        os._exit(code)
    return code


async def _serve(server: EmbeddedServer, started: float) -> int:
    with _stop_signals(server) as stopping:
        try:
            await server.open()
            log.info("loading", address=server.address, metrics=server.metrics_address)
            await _unless(stopping, server.load())
        except StartupError as error:
            log.error(str(error), exc_info=error.__cause__ if server.settings.log_level == "debug" else None)
            await server.close(0)
            return 1
        if not stopping.is_set():
            seconds = round(time.monotonic() - started, 2)
            log.info("ready", seconds=seconds, address=server.address, metrics=server.metrics_address)
        await _unless(stopping, server.failed.wait())
        if server.failed.is_set():
            log.error("an engine has failed for good; the server ends, so that it is started anew")
        log.info("draining", calls=server.gate.running, seconds=server.settings.drain_seconds)
        await server.close(server.settings.drain_seconds)
        log.info("stopped")
        return int(server.failed.is_set())


@contextmanager
def _stop_signals(server: EmbeddedServer) -> Iterator[asyncio.Event]:
    """An event that the first SIGTERM or SIGINT sets. The second one ends the process where it stands."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def arrived(number: int) -> None:
        if stopping.is_set():
            log.warning("stopped at once", calls=server.gate.running)
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, arrived, number)
    try:
        yield stopping
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
    """Does the work, or gives it up when the event comes."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if working.done():
        working.result()
    else:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


def _make_server(max_message_bytes: int) -> grpc.aio.Server:
    return grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # A second server on the port must fail, not share it.
            ("grpc.so_reuseport", 0),
            # Finds clients that vanished without a word, so that their sequences are freed.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_pings_without_data", 0),
            # Lets clients do the same; the default takes more than two pings in five minutes for an attack.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        )
    )


def _listen(server: grpc.aio.Server, settings: Settings) -> str:
    address = _join(settings.host, settings.port)
    credentials = _credentials(settings.tls_certificate, settings.tls_key)
    try:
        # Asked first, because gRPC does not say why it could not.
        _try_to_bind(settings.host, settings.port)
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except (OSError, RuntimeError) as error:
        raise StartupError(
            f"cannot listen on {address}: {getattr(error, 'strerror', error)}; end the server that runs there, or set "
            "ARGOSY_HOST or ARGOSY_PORT"
        ) from error
    return _join(settings.host, port)


def _try_to_bind(host: str, port: int) -> None:
    if host.startswith("unix:"):
        return
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)


def _credentials(certificate: Path | None, key: Path | None) -> grpc.ServerCredentials | None:
    if certificate is None or key is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    except (OSError, ssl.SSLError) as error:
        raise StartupError(
            f"cannot use {certificate} and {key} for TLS: {error.strerror}; name a PEM certificate and its unencrypted "
            "key with ARGOSY_TLS_CERTIFICATE and ARGOSY_TLS_KEY"
        ) from error


def _serve_metrics(settings: Settings) -> tuple[int, Callable[[], None]]:
    host, port = settings.metrics_host, settings.metrics_port
    try:
        return metrics_page.serve(host, port, vllm_names=settings.metrics.vllm_names)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {_join(host, port)} for metrics: {error.strerror}; end the server that runs there, or "
            "set ARGOSY_METRICS_HOST or ARGOSY_METRICS_PORT"
        ) from error


def _start_tracing(settings: Settings) -> tracing.Tracing | None:
    try:
        return tracing.start(settings.tracing, version=__version__)
    except ModuleNotFoundError as error:
        raise StartupError(
            f"packages are missing: {error}; install them with `pip install 'argosy[tracing]'`, or leave "
            "ARGOSY_TRACING__ENDPOINT empty"
        ) from error


def _load_failure(error: Exception) -> StartupError:
    if isinstance(error, ArgosyError | ModelStoreError):
        return StartupError(f"cannot load the models: {error}")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("argosy"):
        return StartupError(f"packages are missing: {error}; install them with `pip install 'argosy[services]'`")
    return StartupError(
        f"cannot load the models: {type(error).__name__}: {error}; check their files with `argosy models verify` or "
        "choose other ones; ARGOSY_LOG_LEVEL=debug shows where it happened"
    )


def _join(host: str, port: int) -> str:
    if host.startswith("unix:"):
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
