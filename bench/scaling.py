"""Engines that come with a burst and go after it, and what callers see of it.

    python bench/scaling.py          from one engine to three and back, into results/scaling.csv and .svg
    python bench/scaling.py cold     the first request to a fleet without any engine

The burst is long prompts; what drives the number of engines is how many of their tokens wait. Beside it a small request
is sent every second, whatever became of those before: its time to the first token is what an interactive user sees.
"""

from __future__ import annotations

import asyncio
import csv
import sys
import time
import urllib.request
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import argosy
from argosy_services.cluster import local
from argosy_services.cluster.control import Control
from argosy_services.settings import ClusterSettings, GenerationSettings, Replicas, Settings
from argosy_services.testing import RunningCluster, run_test_cluster

RESULTS = Path(__file__).with_name("results")
CALM_S = 15
BURST_S = 75
LIMIT_S = 240
CALLERS = 24
WORDS = " ".join(f"wave {number}" for number in range(180))


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at a moment; `first_token_ms` is what the small request got that was sent last before it."""

    seconds: float
    engines: int
    waiting_tokens: float
    first_token_ms: float


def settings(fewest: int) -> Settings:
    """A fleet that changes its size within seconds."""
    return Settings(
        generation=GenerationSettings(threads=1, max_batch=8, prefix_cache=False, kv_cache_tokens=16_384),
        cluster=ClusterSettings(
            engine=Replicas(min=fewest, max=3, cpus=0.3),
            engine_waiting_tokens=1_024,
            upscale_seconds=3,
            downscale_seconds=15,
            drain_seconds=30,
        ),
        log_level="warning",
    )


class Watch:
    """Looks at a fleet twice a second."""

    def __init__(self, fleet: RunningCluster) -> None:
        ray = local.find(fleet.settings)
        if ray is None:
            raise RuntimeError("the fleet does not run")
        self.samples: list[Sample] = []
        self.first_tokens: dict[float, float] = {}
        self._fleet = fleet
        self._control = Control(ray.dashboard, ray.token)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def engines(self) -> int:
        """Engines that take calls."""
        return sum(
            found.running for state in self._control.states() for found in state.deployments if found.name == "Engine"
        )

    def look(self) -> Sample:
        """Takes a sample."""
        sample = Sample(round(self.seconds, 1), self.engines(), self._waiting(), 0.0)
        self.samples.append(sample)
        return sample

    def whole(self) -> list[Sample]:
        """The samples with their first tokens, which come later."""
        return [replace(sample, first_token_ms=round(self._first_token(sample.seconds), 1)) for sample in self.samples]

    def _first_token(self, seconds: float) -> float:
        sent = max((sent for sent in self.first_tokens if sent <= seconds), default=min(self.first_tokens))
        return self.first_tokens[sent]

    def _waiting(self) -> float:
        total = 0.0
        for address in self._fleet.metrics_addresses:
            try:
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=2) as page:
                    lines = page.read().decode().splitlines()
            except OSError:
                continue  # A replica that has just gone.
            total += sum(float(line.split()[-1]) for line in lines if line.startswith("argosy_waiting_tokens{"))
        return total


async def small_request(client: argosy.AsyncClient, watch: Watch) -> None:
    """Notes when its first token came."""
    sent = watch.seconds
    async with client.generation.stream("The sea is", max_tokens=4, ignore_eos=True) as stream:
        async for event in stream:
            if isinstance(event, argosy.Delta):
                watch.first_tokens.setdefault(sent, 1000 * (watch.seconds - sent))


async def small_requests(client: argosy.AsyncClient, watch: Watch, over: asyncio.Event) -> None:
    """One a second, until it is over and all are answered."""
    async with asyncio.TaskGroup() as requests:
        while not over.is_set():
            requests.create_task(small_request(client, watch))
            await asyncio.sleep(1.0)


async def long_requests(client: argosy.AsyncClient, watch: Watch, caller: int) -> int:
    """One after another until the burst is over; returns how many were answered."""
    for number in range(1_000_000):
        if watch.seconds > CALM_S + BURST_S:
            return number
        await client.generation.generate(f"{caller} {number} {WORDS}", max_tokens=16, ignore_eos=True)
    return 0


async def rise_and_fall(fleet: RunningCluster) -> None:
    """Calm, burst, calm; writes what was seen."""
    watch = Watch(fleet)
    async with argosy.AsyncClient(fleet.address, timeout=180) as client:
        over = asyncio.Event()
        small = asyncio.create_task(small_requests(client, watch, over))
        burst: list[asyncio.Task[int]] = []
        while watch.seconds < LIMIT_S:
            sample = await asyncio.to_thread(watch.look)
            print(*astuple(sample)[:3], sep="\t", flush=True)
            if not burst and sample.seconds > CALM_S:
                burst = [asyncio.create_task(long_requests(client, watch, caller)) for caller in range(CALLERS)]
            if burst and all(task.done() for task in burst) and sample.engines == 1:
                break
            await asyncio.sleep(0.5)
        answered = sum(await asyncio.gather(*burst))
        over.set()
        await small
    write(watch.whole())
    report(watch.samples, answered)


def report(samples: list[Sample], answered: int) -> None:
    """Prints when the fleet had how many engines."""
    for count in (2, 3):
        first = next((sample.seconds for sample in samples if sample.engines >= count), None)
        print(f"{count} engines: " + ("never" if first is None else f"{first - CALM_S:.0f} s after the burst began"))
    last = samples[-1]
    print(f"{last.engines} engine {last.seconds - CALM_S - BURST_S:.0f} s after it ended; {answered} long requests")


def write(samples: list[Sample]) -> None:
    """The samples as a table and as a picture."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "scaling.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(field.name for field in fields(Sample))
        table.writerows(astuple(sample) for sample in samples)
    seconds = [sample.seconds for sample in samples]
    curves = {
        "engines": [sample.engines for sample in samples],
        "waiting tokens": [sample.waiting_tokens for sample in samples],
        "first token, ms": [sample.first_token_ms for sample in samples],
    }
    figure, axes = pyplot.subplots(len(curves), sharex=True, figsize=(8, 6), layout="constrained")
    for axis, (name, values) in zip(axes, curves.items(), strict=True):
        axis.step(seconds, values, where="post", linewidth=1.2)
        axis.axvspan(CALM_S, CALM_S + BURST_S, alpha=0.12)
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("seconds; the burst is shaded")
    figure.savefig(RESULTS / "scaling.svg")


async def cold(fleet: RunningCluster) -> None:
    """Waits until no engine is left, then asks."""
    watch = Watch(fleet)
    async with argosy.AsyncClient(fleet.address, timeout=180) as client:
        await client.generation.generate("The sea is", max_tokens=4)
        while await asyncio.to_thread(watch.engines):  # noqa: ASYNC110 - nothing tells when the last one goes
            await asyncio.sleep(1)
        for _ in range(2):
            called = time.monotonic()
            await client.generation.generate("The sea is", max_tokens=1)
            print(f"first token after {time.monotonic() - called:.2f} s")


if __name__ == "__main__":
    is_cold = sys.argv[1:] == ["cold"]
    with run_test_cluster(settings(0 if is_cold else 1)) as running:
        asyncio.run((cold if is_cold else rise_and_fall)(running))
