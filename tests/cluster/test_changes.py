"""A running fleet is told something new; what runs goes on."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.cluster.conftest import Processes
from tests.cluster.test_failures import PROMPTS, TOKENS, read

import argosy
from argosy_services.cluster import local
from argosy_services.cluster.control import Control
from argosy_services.cluster.serve_config import serve_config
from argosy_services.models.types import LocalModel
from argosy_services.settings import Settings
from argosy_services.testing import RunningCluster

ON_ALL_WITHIN_S = 2.0


@pytest.fixture
def adapter(smollm2: LocalModel, tmp_path: Path) -> Path:
    """An adapter that changes every answer."""
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": smollm2.name,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
        tensors[name + "lora_A.weight"] = torch.randn(4, 576, generator=generator) * 0.3
        tensors[name + "lora_B.weight"] = torch.randn(576, 4, generator=generator) * 0.3
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path


def generated(fleet: RunningCluster) -> list[float]:
    """How many tokens each engine has generated."""
    counts = []
    for address in fleet.metrics_addresses:
        with urllib.request.urlopen(f"http://{address}/metrics") as page:
            lines = page.read().decode().splitlines()
        counts += [float(line.split()[-1]) for line in lines if line.startswith("argosy_generated_tokens_total{")]
    return counts


def deploy(settings: Settings) -> None:
    ray = local.find(settings)
    assert ray is not None
    control = Control(ray.dashboard, ray.token)
    control.deploy(serve_config(settings))
    for _ in control.follow(60):
        pass


async def test_an_adapter_answers_on_every_engine_soon(fleet: RunningCluster, adapter: Path) -> None:
    async with argosy.AsyncClient(fleet.address, timeout=60) as client:
        plain = await asyncio.gather(*(read(client, prompt) for prompt in PROMPTS))
        before = generated(fleet)
        started = time.monotonic()
        await client.adapters.load("log", adapter)
        took = time.monotonic() - started
        adapted = await asyncio.gather(*(read(client, prompt, adapter="log") for prompt in PROMPTS))
        await client.adapters.unload("log")
        again = await asyncio.gather(*(read(client, prompt) for prompt in PROMPTS))
    assert took < ON_ALL_WITHIN_S
    print(f"an adapter was on every engine after {took:.2f} s")
    assert all(there > here for here, there in zip(before, generated(fleet), strict=True))
    assert all(one != other for one, other in zip(plain, adapted, strict=True))
    assert again == plain


async def test_limits_change_in_place(fleet: RunningCluster, processes: Processes, adapter: Path) -> None:
    replicas = [process.pid for process in processes.named("ray::ServeReplica")]
    settings = fleet.settings
    narrow = settings.model_copy(
        update={
            "adapters": settings.adapters.model_copy(update={"max_size_bytes": 1_000}),
            "agents": settings.agents.model_copy(update={"max_running": 1}),
        }
    )
    async with argosy.AsyncClient(fleet.address, timeout=120) as client:
        expected = await read(client, PROMPTS[0])
        stream = asyncio.create_task(read(client, PROMPTS[0]))
        await asyncio.to_thread(deploy, narrow)
        with pytest.raises(argosy.AdapterInvalidError, match="1000 bytes"):
            await client.adapters.load("large", adapter)
        first = client.agents.run("What is 2 + 2?")
        await anext(first)
        with pytest.raises(argosy.QueueFullError):
            await argosy_run_once(fleet.address)
        await first.close()
        assert await stream == expected
        await asyncio.to_thread(deploy, settings)
        await client.adapters.load("large", adapter)
        await client.adapters.unload("large")
    assert [process.pid for process in processes.named("ray::ServeReplica")] == replicas


async def argosy_run_once(address: str) -> str | None:
    async with argosy.AsyncClient(address, retry=argosy.RetryPolicy(max_attempts=1)) as client:
        return await client.agents.run("What is 2 + 2?").result()


async def test_a_redeployed_engine_lets_its_streams_finish(fleet: RunningCluster, processes: Processes) -> None:
    before = {process.pid for process in processes.named("ray::ServeReplica:generation:Engine")}
    settings = fleet.settings
    other = settings.model_copy(
        update={"generation": settings.generation.model_copy(update={"kv_cache_tokens": 8_192})}
    )
    async with argosy.AsyncClient(fleet.address, timeout=240) as client:
        undisturbed = await asyncio.gather(*(read(client, prompt) for prompt in PROMPTS))
        reading = [asyncio.create_task(read(client, prompt)) for prompt in PROMPTS]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(deploy, other)
        assert await asyncio.gather(*reading) == undisturbed
        assert len(await read(client, PROMPTS[0])) == TOKENS
    after = {process.pid for process in processes.named("ray::ServeReplica:generation:Engine")}
    assert len(after - before) == 2


async def test_a_watch_does_not_hold_a_replica_that_goes(
    fleet: RunningCluster, processes: Processes, tmp_path: Path
) -> None:
    """It would last until Ray Serve kills the replica, which ends it without a reason."""
    (old,) = processes.named("ray::ServeReplica:adapters")
    settings = fleet.settings
    other = settings.model_copy(
        update={"adapters": settings.adapters.model_copy(update={"cache_dir": tmp_path / "cache"})}
    )
    async with argosy.AsyncClient(fleet.address, timeout=120) as client:
        events = client.adapters.watch()
        async with events:
            await anext(aiter(events))
            started = time.monotonic()
            changing = asyncio.create_task(asyncio.to_thread(deploy, other))
            with pytest.raises(argosy.ServerDrainingError):
                async for _ in events:
                    pass
        print(f"a watch ended {time.monotonic() - started:.1f} s after the change")
        await changing
        assert old.pid not in {process.pid for process in processes.named("ray::ServeReplica:adapters")}
        await asyncio.to_thread(deploy, settings)
