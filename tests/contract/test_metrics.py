"""What a fleet exports while it works, and while it is asked for what does not exist."""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

import argosy
from argosy_services.cluster import local
from argosy_services.testing import RunningCluster, RunningFleet

pytestmark = pytest.mark.usefixtures("nothing_leaks")

REQUESTS = 10_000
# Each costs several calls there, and the servicers are the same.
REQUESTS_ON_RAY = 1_000
AT_ONCE = 64
# Of each metric one series for each method, code and reason that is new to it, buckets and all; nothing by name.
MAY_COME = 300
ONCE = argosy.RetryPolicy(max_attempts=1)
SEEN = (
    "argosy_build_info",
    "argosy_ready",
    "argosy_rpc_total",
    "argosy_rpc_seconds_count",
    "argosy_usage_tokens_total",
    "argosy_usage_requests_total",
    "argosy_prompt_tokens_total",
    "argosy_generated_tokens_total",
    "argosy_sequences_finished_total",
    "argosy_queue_seconds_count",
    "argosy_prefill_seconds_count",
    "argosy_decode_seconds_count",
    "argosy_time_to_first_token_seconds_count",
    "argosy_inter_token_seconds_count",
    "argosy_time_per_output_token_seconds_count",
    "argosy_end_to_end_seconds_count",
    "argosy_kv_blocks_total",
    "argosy_engine_steps_total",
    "argosy_step_seconds_count",
    "argosy_batch_sequences_count",
    "argosy_batch_tokens_count",
    "argosy_adapter_slots_total",
    "argosy_embedded_texts_total",
    "argosy_embedding_batch_fill_count",
    "argosy_embedding_batch_seconds_count",
    "argosy_embedding_queue_seconds_count",
    "argosy_tokenized_texts_total",
    "argosy_tokenize_seconds_count",
    "argosy_agent_runs_total",
    "argosy_agent_run_seconds_count",
    "argosy_agent_steps_total",
    "argosy_tool_calls_total",
    "argosy_tool_seconds_count",
)


def series(fleet: RunningFleet) -> set[str]:
    """All series on all pages: names with their labels."""
    found: set[str] = set()
    for address in fleet.metrics_addresses:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        found |= {f"{address} {line.rpartition(' ')[0]}" for line in lines if not line.startswith("#")}
    return found


def test_every_stage_of_the_work_is_seen(client: argosy.Client, metric: Callable[..., float]) -> None:
    """Fails when an instrument of the table is wired to nothing."""
    client.generation.generate("The harbour at night is", max_tokens=8, ignore_eos=True)
    client.embeddings.embed(["a ship", "a boat"])
    client.tokenization.encode("a ship")
    client.agents.run("What is 17 * 23 + 4?", tools=["calculator"], seed=1).result()
    assert [name for name in SEEN if not metric(name)] == []


async def test_names_that_callers_make_up_become_no_series(client: argosy.Client, fleet: RunningFleet) -> None:
    """Fails when any name out of so many requests becomes a label."""
    await _ask(fleet, 200)
    before = series(fleet)
    await _ask(fleet, REQUESTS_ON_RAY if isinstance(fleet, RunningCluster) else REQUESTS)
    after = series(fleet)
    assert len(after - before) <= MAY_COME
    assert [one for one in after if "made-up" in one] == []


async def _ask(fleet: RunningFleet, requests: int) -> None:
    """Asks every service for what does not exist, each time by another name."""
    async with argosy.AsyncClient(fleet.address, timeout=120, retry=ONCE) as client:
        ways = (
            lambda name: client.generation.generate("x", model=name, max_tokens=1),
            lambda name: client.generation.generate("x", adapter=name, max_tokens=1),
            lambda name: client.generation.score([("a", "b")], adapter=name),
            lambda name: client.generation.explain(name),
            lambda name: client.embeddings.embed(["x"], model=name),
            lambda name: client.tokenization.count_tokens(name, model=name),
            lambda name: client.adapters.get(name),
            lambda name: client.adapters.load(name, f"file:///nowhere/{name}"),
            lambda name: client.agents.run("x", tools=[name]).result(),
        )
        turn = asyncio.Semaphore(AT_ONCE)

        async def ask(number: int) -> None:
            name = f"made-up-{uuid.uuid4().hex}"
            async with turn:
                with pytest.raises(argosy.ArgosyError):
                    await ways[number % len(ways)](name)

        async with asyncio.timeout(240):
            await asyncio.gather(*map(ask, range(requests)))


def test_an_adapter_is_counted(client: argosy.Client, metric: Callable[..., float], good_adapter: Path) -> None:
    """Fails when an operator cannot see which adapter is hot, or whether adapters find slots."""
    before = metric("argosy_adapter_hits_total") + metric("argosy_adapter_misses_total")
    client.adapters.load("counted", good_adapter)
    try:
        answer = client.generation.generate("x", adapter="counted", max_tokens=4, ignore_eos=True)
        labels = {"adapter": "counted", "tenant": "_anonymous"}
        used = metric("argosy_usage_tokens_total", **labels, kind="completion")
        assert used == answer.usage.completion_tokens == 4
        assert metric("argosy_usage_requests_total", **labels) == 1
        assert metric("argosy_adapter_hits_total") + metric("argosy_adapter_misses_total") == before + 1
        assert metric("argosy_adapter_loads_total", result="ready") >= 1
        assert metric("argosy_adapter_resident", adapter="counted", tier="slot") == 1
    finally:
        client.adapters.unload("counted")
    assert metric("argosy_adapter_resident", adapter="counted") == 0


def test_rays_own_page_says_the_same(fleet: RunningFleet, client: argosy.Client, metric: Callable[..., float]) -> None:
    """Fails when what Prometheus reads from Ray's agents differs from the replicas' own pages in more than `ray_`."""
    if not isinstance(fleet, RunningCluster):
        pytest.skip("there is no Ray")
    client.generation.generate("The harbour at night is", max_tokens=8, ignore_eos=True)
    counters = [name for name in SEEN if name.endswith("_total")]
    give_up = time.monotonic() + 60
    while (seen := _on_rays_page(fleet, counters)) != (own := {name: metric(name) for name in counters}):
        assert time.monotonic() < give_up, f"Ray says {seen}, replicas say {own}"
        time.sleep(1)
    assert all(_on_rays_page(fleet, SEEN).values())


def _on_rays_page(fleet: RunningCluster, names: Sequence[str]) -> dict[str, float]:
    ray = local.find(fleet.settings)
    assert ray is not None
    arguments = " ".join(" ".join(child.cmdline()) for child in psutil.Process(ray.pid).children(recursive=True))
    session = re.search(r"--session[-_]dir=(\S+)", arguments)
    assert session is not None
    found: Counter[str] = Counter()
    (group,) = json.loads(Path(session[1], "prom_metrics_service_discovery.json").read_text())
    for target in group["targets"]:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as page:
            for line in page.read().decode().splitlines():
                if not line.startswith("#"):
                    found[re.split("[ {]", line)[0]] += float(line.rpartition(" ")[2])
    return {name: found[f"ray_{name}"] for name in names}
