"""One real fleet on the bundled models, reached through the SDK.

The suite asks nothing of the runtime behind it, so that every runtime can be held to it.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import argosy
from argosy_services.models.types import LocalModel
from argosy_services.settings import AdapterSettings, ClusterSettings, GenerationSettings, Settings, TracingSettings
from argosy_services.testing import (
    Collector,
    RunningFleet,
    run_test_cluster,
    run_test_collector,
    run_test_server_in_thread,
)


@pytest.fixture(scope="session")
def adapter_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fleet accepts adapters from."""
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the fleet sends the traces that callers ask for."""
    with run_test_collector() as running:
        yield running


# Which runtimes are held to the suite; `make test-contract` names those on Ray.
_RUNTIMES = os.environ.get("ARGOSY_TEST_RUNTIMES", "embedded").split(",")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests that start an embedded server of their own to runs that hold embedded fleets to the contract."""
    if "embedded" in _RUNTIMES:
        return
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents and "fleet" not in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=own)
    items[:] = [item for item in items if item not in own]


@pytest.fixture(scope="session", params=_RUNTIMES)
def fleet(
    request: pytest.FixtureRequest,
    smollm2: LocalModel,
    minilm: LocalModel,
    adapter_root: Path,
    collector: Collector,
) -> Iterator[RunningFleet]:
    """The running fleet, in float32, in each runtime."""
    settings = Settings(
        generation=GenerationSettings(model=smollm2.name, dtype="float32", kv_cache_tokens=12_288, threads=1),
        embeddings={"model": minilm.name},  # type: ignore[arg-type]
        adapters=AdapterSettings(roots=(adapter_root,)),
        tracing=TracingSettings(endpoint=collector.endpoint, sample_ratio=0),
        log_level="warning",
    )
    runtime, _, profile = request.param.partition("-")
    if runtime == "embedded":
        with run_test_server_in_thread(settings) as running:
            yield running
        return
    cluster = ClusterSettings(profile=profile, drain_seconds=5)
    with run_test_cluster(settings.model_copy(update={"cluster": cluster})) as running:
        yield running


@pytest.fixture(scope="session")
def client(fleet: RunningFleet) -> Iterator[argosy.Client]:
    """A client of the fleet."""
    with argosy.Client(fleet.address, timeout=180) as client:
        yield client


@pytest.fixture(scope="session")
def metric(fleet: RunningFleet) -> Callable[..., float]:
    """Reads one metric; samples that match the given labels are added up."""

    def read(name: str, **labels: str) -> float:
        lines: list[str] = []
        for address in fleet.metrics_addresses:
            with urllib.request.urlopen(f"http://{address}/metrics") as page:
                lines += page.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        samples = [line for line in lines if line.startswith((name + "{", name + " "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples if all(label in line for label in wanted))

    return read


@pytest.fixture
def nothing_leaks(metric: Callable[..., float]) -> Iterator[None]:
    """After the test no block, sequence, lease or call is left."""
    yield
    names = ("argosy_kv_blocks_in_use", "argosy_sequences_running", "argosy_sequences_waiting", "argosy_adapter_leases")
    give_up = time.monotonic() + 10
    while left := {name: metric(name) for name in (*names, "argosy_rpc_running") if metric(name)}:
        assert time.monotonic() < give_up, f"left behind: {left}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def good_adapter(smollm2: LocalModel, adapter_root: Path) -> Path:
    """A small adapter that loads."""
    directory = adapter_root / "good"
    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": smollm2.name,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj."
        tensors[name + "lora_A.weight"] = torch.randn(4, 576, generator=generator) * 0.3
        tensors[name + "lora_B.weight"] = torch.randn(576, 4, generator=generator) * 0.3
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory
