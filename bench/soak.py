"""Requests while the fleet changes under them: every answer must be there, and be the right one.

    python bench/soak.py [requests] [profile]     2000 and production unless given

Engines go from two to one and back ten times, and three times every engine is replaced by one with other settings,
until that is done and so many requests were answered. The right answers, greedy and in float32, come from the same
fleet before anything is disturbed. Exit code 1 unless none failed and none was wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import argosy
from argosy_services.cluster import local
from argosy_services.cluster.control import Control
from argosy_services.cluster.serve_config import serve_config
from argosy_services.settings import ClusterSettings, GenerationSettings, Replicas, Settings
from argosy_services.testing import RunningCluster, run_test_cluster

RESULTS = Path(__file__).with_name("results") / "soak.json"
CALLERS = 8
SCALE_DOWNS = 10
REDEPLOYS = 3
SUBJECTS = ("The sea is", "An anchor holds", "The harbour master", "A ship that sails", "Silk was carried")
PROMPTS = [f"{subject} {number}" for subject in SUBJECTS for number in range(8)]


@dataclass(slots=True)
class Tally:
    """What came of the requests, and what was done to the fleet."""

    answered: int = 0
    wrong: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    scale_downs: int = 0
    redeploys: int = 0
    disturbed: bool = False


def settings(profile: str, engines: int, cache_tokens: int = 12_288) -> Settings:
    """A fleet with so many engines."""
    return Settings(
        generation=GenerationSettings(dtype="float32", threads=1, kv_cache_tokens=cache_tokens),
        cluster=ClusterSettings(
            profile=profile,  # type: ignore[arg-type]
            drain_seconds=60,
            engine=Replicas(min=engines, max=engines, cpus=0.5),
        ),
        log_level="warning",
    )


async def answer(client: argosy.AsyncClient, number: int) -> tuple[int, ...]:
    """The tokens of a prompt; every second request reads them as a stream."""
    prompt, tokens = PROMPTS[number % len(PROMPTS)], 8 + number % len(PROMPTS) % 3 * 8
    options = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    if number % 2:
        async with client.generation.stream(prompt, **options) as stream:  # type: ignore[arg-type]
            return (await stream.result()).choices[0].token_ids
    return (await client.generation.generate(prompt, **options)).choices[0].token_ids  # type: ignore[arg-type]


class Fleet:
    """The running fleet, and what it shall be."""

    def __init__(self, running: RunningCluster, profile: str) -> None:
        self._base = running.settings
        self._profile = profile
        ray = local.find(self._base)
        if ray is None:
            raise RuntimeError("the fleet does not run")
        self._control = Control(ray.dashboard, ray.token)

    def change(self, engines: int, cache_tokens: int) -> None:
        """Deploys, and waits until it is so."""
        wanted = settings(self._profile, engines, cache_tokens)
        cluster = wanted.cluster.model_copy(
            update={key: getattr(self._base.cluster, key) for key in ("http_port", "dashboard_port")}
        )
        self._control.deploy(serve_config(wanted.model_copy(update={"port": self._base.port, "cluster": cluster})))
        for _ in self._control.follow(120):
            pass


async def ask(client: argosy.AsyncClient, right: list[tuple[int, ...]], numbers: Iterator[int], tally: Tally) -> None:
    """Requests, one after another, until the fleet is left alone."""
    while not tally.disturbed or tally.answered < WANTED:
        number = next(numbers)
        try:
            tokens = await answer(client, number)
        except Exception as error:
            tally.failed[f"{type(error).__name__}: {error}"[:160]] += 1
            continue
        tally.answered += 1
        if tokens != right[number % len(PROMPTS)]:
            tally.wrong += 1


async def disturb(fleet: Fleet, tally: Tally) -> None:
    """Scales down and up again, and redeploys in between."""
    sizes = [12_288 - 512 * index for index in range(REDEPLOYS + 1)]
    for round_number in range(SCALE_DOWNS):
        size = sizes[min(REDEPLOYS, round_number // 3)]
        await asyncio.to_thread(fleet.change, 1, size)
        tally.scale_downs += 1
        await asyncio.to_thread(fleet.change, 2, size)
        if round_number % 3 == 2:
            await asyncio.to_thread(fleet.change, 2, sizes[round_number // 3 + 1])
            tally.redeploys += 1
    tally.disturbed = True


async def tell(tally: Tally) -> None:
    """Prints how far it is."""
    while True:
        await asyncio.sleep(10)
        print(
            f"{tally.answered} answered, {tally.wrong} wrong, {tally.failed.total()} failed, "
            f"{tally.scale_downs} scale-downs, {tally.redeploys} redeploys",
            flush=True,
        )


async def run(running: RunningCluster, profile: str) -> Tally:
    """The whole of it."""
    tally = Tally()
    fleet = Fleet(running, profile)
    async with argosy.AsyncClient(running.address, timeout=180) as client:
        right = [await answer(client, number) for number in range(len(PROMPTS))]
        telling = asyncio.create_task(tell(tally))
        numbers = itertools.count()
        callers = [asyncio.create_task(ask(client, right, numbers, tally)) for _ in range(CALLERS)]
        await disturb(fleet, tally)
        await asyncio.gather(*callers)
        telling.cancel()
    return tally


def main(profile: str) -> int:
    """Runs it and writes the result down."""
    started = time.monotonic()
    with run_test_cluster(settings(profile, 2)) as running:
        tally = asyncio.run(run(running, profile))
    result = {
        "profile": profile,
        "answered": tally.answered,
        "wrong": tally.wrong,
        "failed": dict(tally.failed),
        "scale_downs": tally.scale_downs,
        "rolling_redeploys": tally.redeploys,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(json.dumps(result, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return int(bool(tally.wrong or tally.failed))


WANTED = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000

if __name__ == "__main__":
    sys.exit(main(sys.argv[2] if len(sys.argv) > 2 else "production"))
