"""What the layers around an engine cost: embedded against Ray Serve's production profile, in one run.

    python bench/layers.py rate [rounds]      messages per second and time to the first token
    python bench/layers.py cancel [rounds]    from a caller's cancellation or deadline to the engine's `cancel`

The engine is `replay_engine.py`, which computes nothing. Tokens are not made to wait for one another: each is a message
of its own, unless a server falls behind and puts several into one. The runtimes are measured in turn, so that both meet
the same weather.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

import argosy
from argosy.api.generation.v1 import generation_pb2, generation_service_pb2
from argosy_services.cluster import local
from argosy_services.cluster.control import Control
from argosy_services.cluster.serve_config import serve_config
from argosy_services.settings import ClusterSettings, GenerationSettings, Replicas, Settings

STREAMS = (16, 64, 128, 256)
TOKENS = 80
# One for each core: a gateway is a process, and Python runs on one core.
GATEWAYS = os.cpu_count() or 1
# So long that a cancellation which had to wait for the next token would show.
CANCEL_STEP_S = "0.2"
DEADLINE_S = 0.5
PORTS = {"embedded": 50161, "small": 50164, "production": 50167}
METHOD = "/argosy.api.generation.v1.GenerationService/StreamGenerate"


@contextmanager
def embedded() -> Iterator[str]:
    """A server in a process of its own."""
    port = PORTS["embedded"]
    environment = {
        "ARGOSY_PORT": str(port),
        "ARGOSY_METRICS_PORT": str(port + 1),
        "ARGOSY_LOG_LEVEL": "warning",
        "ARGOSY_GENERATION__STREAM_INTERVAL_MS": "0",
    }
    script = Path(__file__).with_name("replay_engine.py")
    process = subprocess.Popen([sys.executable, script], env={**os.environ, **environment})
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cluster(profile: str) -> Iterator[str]:
    """A fleet on Ray, with one engine."""
    one = Replicas()
    settings = Settings(
        port=PORTS[profile],
        log_level="warning",
        generation=GenerationSettings(stream_interval_ms=0),
        cluster=ClusterSettings(
            profile=profile,  # type: ignore[arg-type]
            http_port=PORTS[profile] + 1_000,
            dashboard_port=PORTS[profile] + 2_000,
            drain_seconds=5,
            **dict.fromkeys(("tokenization", "embeddings", "agents"), one),  # type: ignore[arg-type]
            generation=Replicas(min=GATEWAYS, max=GATEWAYS),
            engine=one,
        ),
    )
    config = serve_config(settings)
    (generation,) = [found for found in config["applications"] if found["name"] == "generation"]
    generation["import_path"] = "replay_engine:generation"
    here = str(Path(__file__).parent)
    if here not in (paths := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, *paths)))
    with local.running(settings) as ray:
        control = Control(ray.dashboard, ray.token)
        control.deploy(config, lambda: ray.alive)
        for _ in control.follow(120):
            pass
        yield f"127.0.0.1:{settings.port}"


class Load:
    """Streams of one server, read without the SDK so that the reader costs little."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stream = self._channel.unary_stream(METHOD)

    async def messages(self, tokens: int) -> list[float]:
        """Times of the messages of one answer, from the call on."""
        sampling = generation_pb2.SamplingParams(max_tokens=tokens, ignore_eos=True)
        spec = generation_pb2.GenerationSpec(text="The sea is", sampling=sampling)
        request = generation_service_pb2.StreamGenerateRequest(spec=spec).SerializeToString()
        called = time.perf_counter()
        call = self._stream(request, metadata=(("application", "generation"),))
        times = []
        while await call.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            times.append(time.perf_counter() - called)
        return times

    async def rate(self, streams: int) -> float:
        """Messages per second over that many streams at once."""
        started = time.perf_counter()
        answers = await asyncio.gather(*(self.messages(TOKENS) for _ in range(streams)))
        return sum(map(len, answers)) / (time.perf_counter() - started)

    async def first_token(self) -> float:
        """Median milliseconds to the first token of 50 calls, one after another. Before it comes a `Started`."""
        return 1000 * statistics.median([(await self.messages(1))[1] for _ in range(50)])


async def measure(rounds: int, figure: Callable[[Load], Awaitable[float]], loads: dict[str, Load]) -> dict[str, float]:
    """Medians of a figure over the rounds, by runtime."""
    found: dict[str, list[float]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, load in loads.items():
            found[name].append(await figure(load))
    return {name: statistics.median(values) for name, values in found.items()}


async def rates(rounds: int, addresses: dict[str, str]) -> None:
    """Prints messages per second and first-token times."""
    loads = {name: Load(address) for name, address in addresses.items()}
    for address in addresses.values():
        async with argosy.AsyncClient(address) as client:
            await client.wait_until_ready(timeout=60)
    for load in loads.values():
        await load.rate(64)
    names = list(addresses)
    print(f"| streams at once | {' | '.join(names)} | ratio |\n| --- | --- | --- | --- |")
    for streams in STREAMS:
        got = await measure(rounds, lambda load, streams=streams: load.rate(streams), loads)
        cells = " | ".join(f"{got[name]:,.0f}/s" for name in names)
        print(f"| {streams} | {cells} | {got[names[1]] / got[names[0]]:.2f} |", flush=True)
    first = await measure(rounds, Load.first_token, loads)
    cells = " | ".join(f"{first[name]:.1f} ms" for name in names)
    print(f"| first token, one at a time | {cells} | {first[names[1]] - first[names[0]]:+.1f} ms |")


def cancels(rounds: int, name: str, address: str, notes: Path) -> None:
    """Prints how long cancellations and deadlines take to the engine."""
    with argosy.Client(address) as client:
        client.wait_until_ready(timeout=60)
        figures = [[way(client, notes) for _ in range(rounds)] for way in (cancelled, too_late)]
    cells = [f"{statistics.median(values):.1f} ms, {max(values):.1f} ms" for values in figures]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def cancelled(client: argosy.Client, notes: Path) -> float:
    """Milliseconds from closing a stream to the engine."""
    stream = client.generation.stream("The sea is", max_tokens=4_000, ignore_eos=True)
    for _, _ in zip(range(10), stream, strict=False):
        pass
    return _arrival(notes, stream.close)


def too_late(client: argosy.Client, notes: Path) -> float:
    """Milliseconds from a deadline to the engine; below 0 where the server looked at the clock before the caller."""

    def call() -> None:
        try:
            client.generation.generate("The sea is", max_tokens=4_000, ignore_eos=True, timeout=DEADLINE_S)
        except argosy.DeadlineExceededError:
            return
        raise RuntimeError("the call ended before its deadline")

    return _arrival(notes, call) - 1000 * DEADLINE_S


def _arrival(notes: Path, act: Callable[[], Any]) -> float:
    before = len(notes.read_text().splitlines())
    since = time.time_ns()
    act()
    give_up = time.monotonic() + 10
    while len(lines := notes.read_text().splitlines()) == before:
        if time.monotonic() > give_up:
            raise RuntimeError("the engine was never told")
        time.sleep(0.001)
    return (int(lines[-1]) - since) / 1e6


def main(what: str, rounds: int) -> None:
    """Starts the fleets, measures, prints."""
    with tempfile.TemporaryDirectory() as directory:
        notes = Path(directory) / "cancels"
        notes.touch()
        os.environ["ARGOSY_BENCH_CANCELS"] = str(notes)
        if what == "rate":
            with embedded() as plain, cluster("production") as production:
                asyncio.run(rates(rounds, {"embedded": plain, "production": production}))
            return
        os.environ["ARGOSY_BENCH_STEP_S"] = CANCEL_STEP_S
        print("| runtime | cancellation: median, most | deadline: median, most |\n| --- | --- | --- |")
        for name, start in (
            ("embedded", embedded),
            ("small", lambda: cluster("small")),
            ("production", lambda: cluster("production")),
        ):
            with start() as address:
                cancels(rounds, name, address, notes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
