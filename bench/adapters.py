"""What adapters cost those who use them and those beside them.

python bench/adapters.py load [rounds, 20]      from LoadAdapter to the first token, beside 32 running streams
python bench/adapters.py zipf [seconds, 60]     200 adapters in 16 slots under a skewed load, against the base alone
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from soak_requests import LAYERS, MODEL, SHAPES

import argosy
from argosy_services import logs
from argosy_services.bootstrap import Fleet
from argosy_services.settings import AdapterSettings, GenerationSettings, Settings
from argosy_services.testing import run_test_server

STREAMS, SLOTS, RANK, REGISTERED = 32, 16, 16, 200
RESULTS = Path(__file__).parent / "results"
ALL, FEW = tuple(SHAPES), ("self_attn.q_proj", "self_attn.v_proj")


def write_adapter(directory: Path, modules: Sequence[str], seed: int) -> Path:
    """A PEFT adapter of rank 16 in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        inputs, outputs = SHAPES[module]
        for layer in range(LAYERS):
            path = f"base_model.model.model.layers.{layer}.{module}"
            down = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            up = torch.randn(outputs, RANK, generator=generator) * 0.02
            tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = down.bfloat16(), up.bfloat16()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [m.split(".")[1] for m in modules],
    }
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


@asynccontextmanager
async def fleet(root: Path, **generation: object) -> AsyncIterator[tuple[argosy.AsyncClient, Fleet]]:
    """A server in this process, and a client of it."""
    settings = Settings(
        generation=GenerationSettings(model=MODEL, max_adapters=SLOTS, **generation),  # type: ignore[arg-type]
        adapters=AdapterSettings(roots=(root,)),
        log_level="error",
    )
    made: list[Fleet] = []

    def build(given: Settings) -> Fleet:
        made.append(Fleet(given))
        return made[0]

    async with run_test_server(settings, build=build) as server, argosy.AsyncClient(server.address) as client:
        yield client, made[0]


async def first_token(client: argosy.AsyncClient, adapter: str, prompt: str) -> float:
    """The time at which the first token of an answer was here."""
    async with client.generation.stream(prompt, adapter=adapter, max_tokens=4, ignore_eos=True) as stream:
        async for event in stream:
            if isinstance(event, argosy.Delta):
                return time.perf_counter()
    raise RuntimeError("the stream ended without a token")


class Streams:
    """Streams of the base that run all the while; notes when each of their tokens came."""

    def __init__(self, client: argosy.AsyncClient) -> None:
        self.times: list[list[float]] = [[] for _ in range(STREAMS)]
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts all of them."""
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(STREAMS)]

    async def until(self, tokens: int) -> None:
        """Waits until each has so many tokens."""
        while min(map(len, self.times)) < tokens:  # noqa: ASYNC110 - nothing to be told by
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Ends them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def gaps(self, windows: Sequence[tuple[float, float]]) -> list[float]:
        """Between two tokens of a stream, where they overlap one of `windows`."""
        return [
            after - before
            for times in self.times
            for before, after in pairwise(times)
            if any(before < end and after > start for start, end in windows)
        ]

    async def _run(self, number: int) -> None:
        options = {"max_tokens": 1_800, "ignore_eos": True, "temperature": 1.0, "seed": number}
        async with self._client.generation.stream(f"Story number {number}:", **options) as stream:  # type: ignore[arg-type]
            async for event in stream:
                if isinstance(event, argosy.Delta):
                    self.times[number].append(time.perf_counter())


async def load(rounds: int, root: Path) -> None:
    """From LoadAdapter to the first token, alone and beside running streams, and the gaps of those."""
    for number in range(2 * rounds + 1):
        write_adapter(root / f"a{number}", ALL, number)
    async with fleet(root, kv_cache_tokens=65_536, stream_interval_ms=0) as (client, _):

        async def once(number: int) -> tuple[float, float]:
            started = time.perf_counter()
            await client.adapters.load(f"a{number}", root / f"a{number}")
            return started, await first_token(client, f"a{number}", "The captain said")

        await once(2 * rounds)  # code and files of the first time
        alone = [await once(number) for number in range(rounds)]
        for number in range(rounds):
            await client.adapters.unload(f"a{number}")
        streams = Streams(client)
        streams.start()
        await streams.until(40)
        quiet_from = time.perf_counter()
        await asyncio.sleep(4)
        quiet = (quiet_from, time.perf_counter())
        beside = []
        for number in range(rounds, 2 * rounds):
            beside.append(await once(number))
            await asyncio.sleep(0.25)
        await streams.stop()
    step = statistics.median(streams.gaps([quiet]))
    gaps = streams.gaps(beside)
    loads = {"alone": alone, "beside 32 streams": beside}
    for name, spans in loads.items():
        took = sorted((end - start) * 1000 for start, end in spans)
        print(f"{name}: median {statistics.median(took):.0f} ms, most {took[-1]:.0f} ms, {len(took)} loads")
    longest = max(streams.gaps([quiet])) / step
    print(f"a step: {step * 1000:.1f} ms; longest gap of a stream without loads: {longest:.2f} steps")
    print(f"during loads: longest {max(gaps) / step:.2f} steps, 99.9 %: {np.quantile(gaps, 0.999) / step:.2f} steps")
    plot(streams, quiet, beside, step)


def plot(streams: Streams, quiet: tuple[float, float], loads: Sequence[tuple[float, float]], step: float) -> None:
    """The gaps over time, with the loads behind them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.2), constrained_layout=True)
    start = quiet[0]
    for times in streams.times:
        points = [(after - start, (after - before) / step) for before, after in pairwise(times)]
        shown = [(at, gap) for at, gap in points if 0 <= at <= 12]
        axes.plot([at for at, _ in shown], [gap for _, gap in shown], ".", markersize=1.5, color="tab:blue")
    for before, after in loads:
        if before - start < 12:
            axes.axvspan(before - start, after - start, color="tab:orange", alpha=0.35, linewidth=0)
    axes.axhline(2, color="tab:red", linewidth=0.8)
    axes.set(xlabel="seconds", ylabel="gap in steps", ylim=(0, None), xlim=(0, 12))
    axes.set_title(f"Gaps between tokens of {STREAMS} streams; loads of rank-{RANK} adapters in orange", fontsize=9)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "adapter_gaps.png", dpi=110)


async def zipf(seconds: float, root: Path) -> None:
    """A closed loop of callers: of the base, and of adapters whose popularity falls as 1 / rank."""
    for number in range(REGISTERED):
        write_adapter(root / f"a{number}", FEW, number)
    weights = [1 / (rank + 1) for rank in range(REGISTERED)]
    async with fleet(root, kv_cache_tokens=65_536) as (client, made):
        started = time.perf_counter()
        for start in range(0, REGISTERED, 50):
            await asyncio.gather(*(client.adapters.load(f"a{n}", root / f"a{n}") for n in range(start, start + 50)))
        print(f"{REGISTERED} adapters registered in {time.perf_counter() - started:.1f} s")
        sides: dict[str, Callable[[random.Random], str]] = {
            "base": lambda _: "",
            f"{REGISTERED} adapters, {SLOTS} slots": lambda draw: f"a{draw.choices(range(REGISTERED), weights)[0]}",
        }
        seen: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in sides}
        before = made.tiers.counts.hits, made.tiers.counts.misses
        for _ in range(2):
            for name, choose in sides.items():
                seen[name].append(await drive(client, choose, seconds / 4))
        hits, misses = made.tiers.counts.hits - before[0], made.tiers.counts.misses - before[1]
    for name, rounds in seen.items():
        rate = statistics.mean(rate for rate, _ in rounds)
        firsts = sorted(first for _, each in rounds for first in each)
        print(
            f"{name}: {rate:.0f} tokens/s; first token: median {statistics.median(firsts) * 1000:.0f} ms, "
            f"99 % {np.quantile(firsts, 0.99) * 1000:.0f} ms, {len(firsts)} requests"
        )
    print(f"hit rate {hits / (hits + misses):.2f} of {hits + misses}; {made.tiers.counts.evictions} evictions")


async def drive(
    client: argosy.AsyncClient, choose: Callable[[random.Random], str], seconds: float
) -> tuple[float, list[float]]:
    """Tokens a second and the times to first tokens of 32 callers."""
    firsts: list[float] = []
    tokens = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal tokens
        draw = random.Random(number)
        while (started := time.perf_counter()) < end:
            prompt = f"Letter {draw.randrange(10_000)}. Dear friend, the ship"
            options = {"max_tokens": 32, "ignore_eos": True, "adapter": choose(draw)}
            async with client.generation.stream(prompt, **options) as stream:  # type: ignore[arg-type]
                first = True
                async for event in stream:
                    if isinstance(event, argosy.Delta):
                        if first:
                            firsts.append(time.perf_counter() - started)
                            first = False
                        tokens += len(event.token_ids)

    started = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(STREAMS)))
    return tokens / (time.perf_counter() - started), firsts


async def main(what: str, amount: int) -> None:
    logs.configure("error", "json")
    with tempfile.TemporaryDirectory() as directory:
        await {"load": load, "zipf": zipf}[what](amount, Path(directory))


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else "load"
    asyncio.run(main(given, int(sys.argv[2]) if len(sys.argv) > 2 else {"load": 20, "zipf": 60}[given]))
