"""Random work for one engine, for long: nothing is lost, nothing grows, and the same request has the same answer.

    python bench/soak_engine.py [minutes] [seed]     20 and 0 unless given

An embedded server with the default settings, but for a small cache and a short queue, and callers in the same process.
Requests come at random times and in bursts that it must refuse; they are cancelled, too late, grammar-bound, and use
adapters that come and go. Each is a function of the seed and its number. Some are made again later, by another caller
and in another batch: they must be answered with the same tokens, greedy or sampled. Exit code 1 unless all is well.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_requests import ADAPTERS, KEYS, MODEL, Manner, Request, Requests, differences, faults, write_adapter

import argosy
from argosy_services import logs, metrics
from argosy_services.embedded import build_all
from argosy_services.settings import AdapterSettings, GenerationSettings, Settings
from argosy_services.testing import run_test_server_in_thread

RESULTS = Path(__file__).with_name("results") / "soak_engine.json"
PLACES, REMEMBERED = 6, 300
# How long the last callers wait once no more come.
PATIENCE_S = 120.0
WARM_UP_MINUTES, GROWTH = 4.0, 0.02


@dataclass(slots=True)
class Tally:
    """What came of it all."""

    ended: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    checks: int = 0
    failed: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def fail(self, problem_: str) -> None:
        """Notes what should not be."""
        self.failed.append(problem_[:2_000])
        print(f"FAILED {problem_[:2_000]}", flush=True)


class Soak:
    """Callers of one server, and what they see."""

    def __init__(self, address: str, engine: Any, requests: Requests, roots: Path) -> None:
        # Who has the lowest priority waits long where there is always too much.
        once, patience_s = argosy.RetryPolicy(max_attempts=1), 3_600
        self.tally = Tally()
        self.stop = asyncio.Event()
        self._clients = [argosy.AsyncClient(address, api_key=key, timeout=patience_s, retry=once) for key in KEYS]
        self._engine = engine
        self._requests, self._roots = requests, roots
        self._random = random.Random(requests.seed)
        self._answers: OrderedDict[int, tuple[Any, ...]] = OrderedDict()
        self._calls: set[asyncio.Task[None]] = set()
        self._began = time.monotonic()

    async def run(self, minutes: float) -> None:
        """Everything, until it is time or `stop` is set; then ends it and looks at what is left."""
        beside = [asyncio.create_task(work()) for work in (self._churn, self._churn, self._watch)]
        end, number = self._began + minutes * 60, 0
        while time.monotonic() < end and not self.stop.is_set():
            # Quiet and busy minutes, and at times more at once than there are places for.
            busy = int(time.monotonic() - self._began) // 30 % 2
            for _ in range(self._random.randint(80, 160) if self._random.random() < 0.008 else 1):
                old = self._random.random() < 0.3 and self._answers
                self._call(self._random.choice(list(self._answers)) if old else (number := number + 1))
            await asyncio.sleep(self._random.expovariate(10.0 if busy else 2.0))
        self.stop.set()
        if self._calls:
            await asyncio.wait(self._calls, timeout=PATIENCE_S)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, *beside)
        await self._end()

    def _call(self, number: int) -> None:
        task = asyncio.create_task(self._ask(self._requests.draw(number), Manner.draw(self._random)))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _ask(self, request: Request, manner: Manner) -> None:
        stopwatch = asyncio.timeout(manner.cancel_s)
        try:
            async with stopwatch:
                await self._answer(request, manner)
        except argosy.ArgosyError as error:
            reason = error.reason or error.code.name
            self.tally.ended[reason] += 1
            if reason not in manner.expected(request) or (reason == "QUEUE_FULL" and error.retry_after is None):
                self.tally.fail(f"request {request.number}: {type(error).__name__}: {error}")
        except (TimeoutError, asyncio.CancelledError):
            self.tally.ended["cancelled"] += 1
        except Exception as error:
            self.tally.fail(f"request {request.number}: {type(error).__name__}: {error}")
        else:
            self.tally.ended["answered"] += 1

    async def _answer(self, request: Request, manner: Manner) -> None:
        client = self._clients[manner.key].generation
        if request.items:
            scoring = await client.score(request.items, **request.options, **manner.standing)
            self._compare(request, scoring.scores)
            return
        if manner.streams:
            async with client.stream(request.prompt, **request.options, **manner.standing) as stream:
                answer = await stream.result()
        else:
            answer = await client.generate(request.prompt, **request.options, **manner.standing)
        self.tally.tokens += answer.usage.completion_tokens
        for fault in faults(request, answer):
            self.tally.fail(f"request {request.number}, {request.options}: {fault}")
        self._compare(request, answer.choices)

    def _compare(self, request: Request, answer: tuple[Any, ...]) -> None:
        before = self._answers.setdefault(request.number, answer)
        if before is not answer:
            self.tally.ended["answered again"] += 1
            for difference in differences(before, answer):
                self.tally.fail(f"request {request.number}, {request.options}: {difference}")
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    async def _churn(self) -> None:
        """Loads and unloads adapters, more of them than there are places."""
        client = self._clients[2].adapters
        while not self.stop.is_set():
            number = self._random.randrange(ADAPTERS)
            name, source = f"adapter-{number}", self._roots / str(number)
            load = self._random.random() < 0.8
            try:
                if load:
                    await client.load(name, source)
                else:
                    await client.unload(name, drain_timeout=self._random.choice((0.0, 0.0, 0.3, 5.0)))
            except argosy.ArgosyError as error:
                self.tally.ended[f"{'load' if load else 'unload'}: {error.reason}"] += 1
                if error.reason not in ("ADAPTER_SLOTS_FULL", "ADAPTER_NOT_READY", "ADAPTER_NOT_FOUND"):
                    self.tally.fail(f"{name}: {type(error).__name__}: {error}")
            else:
                self.tally.ended["loaded" if load else "unloaded"] += 1
            await asyncio.sleep(self._random.expovariate(1.0))

    async def _watch(self) -> None:
        """Checks the engine's books, measures memory and tells how far it is."""
        ticks = 0
        while not self.stop.is_set():
            await asyncio.sleep(1.0)
            ticks += 1
            if ticks % 3 == 0:
                await self._check()
            if ticks % 5 == 0:
                self.tally.memory.append((time.monotonic() - self._began, memory_mb()))
            if ticks % 10 == 0:
                self._tell()

    async def _check(self) -> None:
        try:
            await asyncio.wrap_future(self._engine.check_integrity())
        except Exception as error:
            self.tally.fail(f"integrity: {type(error).__name__}: {error}")
            self.stop.set()
        self.tally.checks += 1

    def _tell(self) -> None:
        stats, (seconds, megabytes) = self._engine.stats(), self.tally.memory[-1]
        ended = ", ".join(f"{count} {name}" for name, count in self.tally.ended.most_common())
        print(f"{seconds:.0f} s, {megabytes:.0f} MB, {stats}, {len(self.tally.failed)} failed: {ended}", flush=True)

    async def _end(self) -> None:
        """Unloads every adapter and looks at what is left."""
        async for adapter in self._clients[2].adapters.list():
            await self._clients[2].adapters.unload(adapter.name, drain_timeout=0.0)
        for client in self._clients:
            await client.close()
        # The server ends a call a moment after its caller has seen its end.
        for _ in range(100):
            if any(self.left().values()):
                await asyncio.sleep(0.1)
        await self._check()

    def left(self) -> dict[str, int]:
        """What is in use."""
        stats = self._engine.stats()
        return {
            "running": stats.running,
            "waiting": stats.waiting,
            "kv_blocks": stats.kv_blocks_in_use,
            "adapter_slots": stats.adapters,
            "leases": int(metrics.ADAPTER_LEASES.now()),
            "calls": int(total(metrics.RPC_RUNNING)),
        }


def total(row: Any) -> float:
    """A metric, all of its labels together."""
    return sum(value.now() for _, value in row.now())


def memory_mb() -> float:
    """What the process has of its own, in MB. Pages of mapped files come and go as the whole machine needs memory."""
    status = Path("/proc/self/status").read_text()
    return sum(int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) for name in ("RssAnon", "RssShmem")) / 1e3  # type: ignore[index]


def growth(memory: list[tuple[float, float]], minutes: float) -> dict[str, float]:
    """How memory moved after the warm-up: medians (MB) of the first and the last quarter, and the Theil-Sen slope."""
    warm = [point for point in memory if point[0] >= min(WARM_UP_MINUTES, minutes / 5) * 60]
    quarter = max(1, len(warm) // 4)
    first, last = (statistics.median(used for _, used in part) for part in (warm[:quarter], warm[-quarter:]))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) * 60 for at, a in enumerate(warm) for b in warm[at + 1 :]]
    return {
        "first_mb": round(first, 1),
        "last_mb": round(last, 1),
        "growth": round(last / first - 1, 4),
        "mb_a_minute": round(statistics.median(slopes or [0.0]), 3),
    }


async def soak(address: str, engine: Any, seed: int, minutes: float, roots: Path) -> Soak:
    """Runs it; Ctrl-C ends it early."""
    docs = Path(__file__).parents[1] / "docs"
    text = "\n".join(path.read_text() for path in sorted(docs.glob("*.md")))
    async with argosy.AsyncClient(address, api_key=KEYS[0]) as client:
        ids = list((await client.tokenization.encode(text)).ids)
    soaked = Soak(address, engine, Requests(seed, text, ids), roots)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, soaked.stop.set)
    await soaked.run(minutes)
    return soaked


def main(minutes: float = 20.0, seed: int = 0) -> int:
    """Runs it and writes the result down."""
    logs.configure("warning", "console")
    fleets: list[Any] = []

    def build(settings: Settings) -> Any:
        fleets.append(build_all(settings))
        return fleets[0]

    with tempfile.TemporaryDirectory() as directory:
        roots = Path(directory)
        for number in range(ADAPTERS):
            write_adapter(roots / str(number), number)
        settings = Settings(
            generation=GenerationSettings(model=MODEL, kv_cache_tokens=6_144, max_waiting=16, max_adapters=PLACES),
            adapters=AdapterSettings(roots=(roots,)),
            api_keys=KEYS,  # type: ignore[arg-type]
            priority_keys=KEYS[2:],  # type: ignore[arg-type]
            log_level="warning",
        )
        with run_test_server_in_thread(settings, build=build) as server:
            engine = fleets[0].engine
            soaked = asyncio.run(soak(server.address, engine, seed, minutes, roots))
            left, stats = soaked.left(), engine.stats()
    tally = soaked.tally
    memory = growth(tally.memory, minutes)
    result = {
        "minutes": round(tally.memory[-1][0] / 60, 1),
        "seed": seed,
        "ended": dict(tally.ended.most_common()),
        "tokens": tally.tokens,
        "steps": stats.steps,
        "preemptions": stats.preemptions,
        "accepted_guesses": int(total(metrics.ACCEPTED_TOKENS)),
        "integrity_checks": tally.checks,
        "left": left,
        "memory": memory,
        "failed": len(tally.failed),
    }
    print(json.dumps(result, indent=2))
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return int(bool(tally.failed or any(left.values()) or memory["growth"] > GROWTH))


if __name__ == "__main__":
    sys.exit(main(*(kind(value) for kind, value in zip((float, int), sys.argv[1:], strict=False))))
