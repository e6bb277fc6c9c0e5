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
from asyncio.subprocess import PIPE
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from soak_requests import LAYERS, MODEL, SHAPES

import argosy
from argosy_services import logs, process
from argosy_services.bootstrap import Fleet
from argosy_services.engine.base import StepOutput
from argosy_services.settings import AdapterSettings, GenerationSettings, Settings
from argosy_services.testing import run_test_server

STREAMS, SLOTS, RANK, REGISTERED = 32, 16, 16, 200
# Between an adapter's first token and its unload, and after that; nothing of either is left in the rest's last part.
REST_S, RECOVER_S = 0.5, 0.2
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
async def fleet(root: Path, **generation: object) -> AsyncIterator[tuple[argosy.AsyncClient, Fleet, str]]:
    """A server in this process with adapters below `root`, and a client of it."""
    settings = Settings(
        generation=GenerationSettings(**{"model": MODEL, "max_adapters": SLOTS} | generation),  # type: ignore[arg-type]
        adapters=AdapterSettings(roots=(root,)),
        log_level="error",
    )
    made: list[Fleet] = []

    def build(given: Settings) -> Fleet:
        made.append(Fleet(given))
        return made[0]

    async with run_test_server(settings, build=build) as server, argosy.AsyncClient(server.address) as client:
        yield client, made[0], server.address


async def first_token(client: argosy.AsyncClient, adapter: str, prompt: str) -> float:
    """The time at which the first token of an answer was here."""
    async with client.generation.stream(prompt, adapter=adapter, max_tokens=4, ignore_eos=True) as stream:
        async for event in stream:
            if isinstance(event, argosy.Delta):
                return time.perf_counter()
    raise RuntimeError("the stream ended without a token")


async def serve(root: Path) -> None:
    """Serves until its input ends, then writes down when the engine handed out each token of each stream."""
    times: dict[str, list[float]] = defaultdict(list)
    async with fleet(root, kv_cache_tokens=65_536) as (_, made, address):
        loop = made.engine._loop  # type: ignore[attr-defined]
        hand_on = loop._on_step

        def note(outputs: list[StepOutput]) -> None:
            now = time.perf_counter()
            for output in outputs:
                if output.token_ids and output.request_id.startswith("stream"):
                    times[output.request_id].append(now)
            hand_on(outputs)

        loop._on_step = note
        process.loaded()
        print(address, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        (root / "times.json").write_text(json.dumps(times))


async def streams(address: str) -> None:
    """Reads streams of the base until its input ends."""
    async with argosy.AsyncClient(address, timeout=600) as client:
        reading = [asyncio.create_task(stream(client, number)) for number in range(STREAMS)]
        await asyncio.to_thread(sys.stdin.read)
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


@asynccontextmanager
async def beside_streams(address: str) -> AsyncIterator[None]:
    """Streams that a process of its own reads, so that their events do not hold up the caller whose time is taken."""
    process = await asyncio.create_subprocess_exec(*(sys.executable, __file__, "streams", address), stdin=PIPE)
    try:
        yield
    finally:
        await process.communicate(b"")


class Server:
    """`serve` in a process of its own, so that what callers compute does not hold the engine up."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def __aenter__(self) -> argosy.AsyncClient:
        process.begin()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "serve", str(self._root)), stdin=PIPE, stdout=PIPE
        )
        assert self._process.stdout is not None
        self.address = (await self._process.stdout.readline()).decode().strip()
        self._client = argosy.AsyncClient(self.address, timeout=600)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._process.communicate(b"")

    def times(self) -> list[list[float]]:
        """When each token of each stream was handed out, by one clock with `time.perf_counter()` here."""
        return list(json.loads((self._root / "times.json").read_text()).values())


async def stream(client: argosy.AsyncClient, number: int) -> None:
    """A stream of the base that is read until it is cancelled."""
    request_id = f"stream{number}"
    options = {"max_tokens": 1_800, "ignore_eos": True, "seed": number, "request_id": request_id}
    async with client.generation.stream(f"Story {number}:", **options) as events:  # type: ignore[arg-type]
        async for _ in events:
            pass


@dataclass(frozen=True, slots=True)
class Load:
    """When an adapter was asked for, had a first token, was to leave, and had left."""

    started: float
    answered: float
    leaves: float
    left: float


def gaps(times: Sequence[Sequence[float]], windows: Sequence[tuple[float, float]]) -> list[float]:
    """Between two tokens of a stream, where they overlap one of `windows`."""
    return [
        after - before
        for each in times
        for before, after in pairwise(each)
        if any(before < end and after > start for start, end in windows)
    ]


async def load(rounds: int, root: Path) -> None:
    """From LoadAdapter to the first token, with a free slot, alone and beside running streams; the gaps of those."""
    for number in range(2 * rounds + 1):
        write_adapter(root / f"a{number}", ALL, number)
    server = Server(root)
    async with server as client:

        async def once(number: int) -> Load:
            started = time.perf_counter()
            await client.adapters.load(f"a{number}", root / f"a{number}")
            answered = await first_token(client, f"a{number}", "The captain said")
            await asyncio.sleep(REST_S)
            leaves = time.perf_counter()
            await client.adapters.unload(f"a{number}")
            left = time.perf_counter()
            await asyncio.sleep(REST_S)
            return Load(started, answered, leaves, left)

        await once(2 * rounds)  # code and files of the first time
        alone = [await once(number) for number in range(rounds)]
        async with beside_streams(server.address):
            await asyncio.sleep(8)
            beside = [await once(number) for number in range(rounds, 2 * rounds)]
    times = server.times()
    for name, loads in {"alone": alone, f"beside {STREAMS} streams": beside}.items():
        took = sorted((each.answered - each.started) * 1000 for each in loads)
        print(f"{name}: median {statistics.median(took):.0f} ms, most {took[-1]:.0f} ms, {len(took)} loads")
    steps = [normal_step(times, each) for each in beside]
    print(f"a step: {1000 * statistics.median(steps):.1f} ms")
    took = statistics.median(each.answered - each.started for each in beside)
    windows = {
        "a load": [(each.started, each.answered) for each in beside],
        "an unload": [(each.leaves, each.left) for each in beside],
        "as long as a load without one": [(each.left + RECOVER_S, each.left + RECOVER_S + took) for each in beside],
    }
    for name, spans in windows.items():
        longest = [max(gaps(times, [span])) / step for span, step in zip(spans, steps, strict=True)]
        above = sum(gap > 2 for gap in longest)
        print(
            f"longest gap in {name}: median {statistics.median(longest):.2f} steps, most {max(longest):.2f} steps, "
            f"above 2 in {above} of {len(longest)}"
        )
    plot(times, beside, statistics.median(steps))


def normal_step(times: Sequence[Sequence[float]], load: Load) -> float:
    """The median gap in the rests around an adapter's unload: others' work moves a machine's speed within seconds."""
    rests = [(load.answered + RECOVER_S, load.leaves), (load.left + RECOVER_S, load.left + REST_S)]
    return statistics.median(gaps(times, rests))


def plot(times: Sequence[Sequence[float]], loads: Sequence[Load], step: float) -> None:
    """The gaps over time, with the loads behind them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.2), constrained_layout=True)
    start = loads[0].started - REST_S
    for each in times:
        points = [(after - start, (after - before) / step) for before, after in pairwise(each)]
        shown = [(at, gap) for at, gap in points if 0 <= at <= 12]
        axes.plot([at for at, _ in shown], [gap for _, gap in shown], ".", markersize=1.5, color="tab:blue")
    for load in loads:
        if load.left - start < 12:
            axes.axvspan(load.started - start, load.answered - start, color="tab:orange", alpha=0.35, linewidth=0)
            axes.axvspan(load.leaves - start, load.left - start, color="tab:gray", alpha=0.25, linewidth=0)
    axes.axhline(2, color="tab:red", linewidth=0.8)
    axes.set(xlabel="seconds", ylabel="gap in steps", ylim=(0, None), xlim=(0, 12))
    title = f"Gaps between tokens of {STREAMS} streams; loads of rank-{RANK} adapters in orange, unloads in gray"
    axes.set_title(title, fontsize=9)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "adapter_gaps.png", dpi=110)


async def zipf(seconds: float, root: Path) -> None:
    """A closed loop of callers: of the base, and of adapters whose popularity falls as 1 / rank."""
    for number in range(REGISTERED):
        write_adapter(root / f"a{number}", FEW, number)
    weights = [1 / (rank + 1) for rank in range(REGISTERED)]
    async with fleet(root, kv_cache_tokens=65_536) as (client, made, _):
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
    with tempfile.TemporaryDirectory() as directory:
        await {"load": load, "zipf": zipf}[what](amount, Path(directory))


if __name__ == "__main__":
    logs.configure("error", "json")
    if sys.argv[1:2] == ["serve"]:
        sys.exit(asyncio.run(serve(Path(sys.argv[2]))))
    if sys.argv[1:2] == ["streams"]:
        sys.exit(asyncio.run(streams(sys.argv[2])))
    given = sys.argv[1] if len(sys.argv) > 1 else "load"
    asyncio.run(main(given, int(sys.argv[2]) if len(sys.argv) > 2 else {"load": 20, "zipf": 60}[given]))
