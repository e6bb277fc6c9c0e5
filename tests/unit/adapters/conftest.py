"""Small adapters on disk, and an engine whose steps a test can hold open."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from argosy_services import metrics
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.adapters.types import AdapterState
from argosy_services.engine.torch_engine.lora.reader import LoraWeights, read_peft_adapter
from argosy_services.storage.database import Database

SHAPES = {
    "model.layers.0.self_attn.q_proj": (8, 8),
    "model.layers.0.mlp.down_proj": (8, 12),
    "model.layers.1.self_attn.q_proj": (8, 8),
    "model.layers.1.mlp.down_proj": (8, 12),
}

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def shapes() -> Mapping[str, tuple[int, int]]:
    """Layers of a model of two layers, (out_features, in_features) by path."""
    return SHAPES


@pytest.fixture
def write_adapter(tmp_path: Path) -> Writer:
    """Writes an adapter of rank 2 for `shapes`; options and tensors replace the defaults, None removes one."""

    def write(
        name: str = "adapter",
        *,
        root: Path = tmp_path,
        options: Mapping[str, object] = {},
        tensors: Mapping[str, torch.Tensor | None] = {},
        rank: int = 2,
    ) -> Path:
        directory = root / name
        directory.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}
        config = {key: value for key, value in {**config, **options}.items() if value is not None}
        (directory / "adapter_config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(7)
        weights: dict[str, torch.Tensor | None] = {}
        for path, (out_features, in_features) in SHAPES.items():
            weights[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, in_features, generator=generator)
            weights[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out_features, rank, generator=generator)
        weights.update(tensors)
        kept = {key: value for key, value in weights.items() if value is not None}
        save_file(kept, directory / "adapter_model.safetensors")
        return directory

    return write


class ScriptedEngine:
    """The adapter methods of an engine. Reading is real; each step can be held open or made to fail.

    `calls` are the operations in their order, `inside` the adapters that it holds by key.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.inside: dict[str, LoraWeights] = {}
        self.may_read = threading.Event()
        self.may_read.set()
        self.read_error: Exception | None = None
        self.load_error: Exception | None = None
        self.unload_error: Exception | None = None
        self.taken_though_failed = False
        self.holding = False
        self.held: list[Callable[[], None]] = []

    def read_adapter(self, directory: Path) -> LoraWeights:
        self.calls.append(("read", ""))
        if not self.may_read.wait(20):
            raise TimeoutError("the test never let the engine read")
        if self.read_error:
            raise self.read_error
        return read_peft_adapter(directory, shapes=SHAPES, max_rank=4, dtype=torch.float32, base_model="small")

    def load_adapter(self, key: str, weights: LoraWeights) -> Future[None]:
        self.calls.append(("load", key))
        if weights is None:
            raise TypeError("an engine takes weights")

        def put() -> None:
            if self.load_error is None or self.taken_though_failed:
                self.inside[key] = weights

        return self._step(put, self.load_error)

    def unload_adapter(self, key: str) -> Future[None]:
        self.calls.append(("unload", key))
        return self._step(lambda: self.inside.pop(key), self.unload_error)

    def release(self) -> None:
        """Does the steps that were held back."""
        self.holding = False
        while self.held:
            self.held.pop(0)()

    def _step(self, action: Callable[[], object], error: Exception | None) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            action()
            if error:
                future.set_exception(error)
            else:
                future.set_result(None)

        if self.holding:
            self.held.append(run)
        else:
            # From another thread, as a real engine does.
            threading.Thread(target=run).start()
        return future


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


def adapters_by_state() -> dict[str, float]:
    return {state.value: metrics.ADAPTERS.labels(state=state.value).now() for state in AdapterState}


@pytest.fixture
def nothing_leaks(tmp_path: Path, engine: ScriptedEngine) -> Iterator[None]:
    """Fails a test that leaves a half-copied file, a lease or a count behind."""
    before, leases = adapters_by_state(), metrics.ADAPTER_LEASES.now()
    yield
    assert list((tmp_path / "cache" / "coming").iterdir()) == []
    assert adapters_by_state() == before
    assert metrics.ADAPTER_LEASES.now() == leases


Start = Callable[..., AbstractAsyncContextManager[AdaptersService]]


@pytest.fixture
def start_service(tmp_path: Path, engine: ScriptedEngine, nothing_leaks: None) -> Start:
    """Starts services that accept adapters below the test's directory, for models "small" (the default) and "other".
    All have one database and one cache: those that run together are replicas, those that follow each other restarts.
    `replica` gives it an engine of its own, `models` are served.
    """

    @asynccontextmanager
    async def start(
        *, replica: bool = False, models: Sequence[str] = ("small", "other")
    ) -> AsyncIterator[AdaptersService]:
        host = ScriptedEngine() if replica else engine
        database = Database(f"sqlite:///{tmp_path / 'argosy.db'}")
        tiers = AdapterTiers(host, slots=16, memory_bytes=1 << 20)  # type: ignore[arg-type]
        service = AdaptersService(
            dict.fromkeys(models, tiers),
            database,
            roots=[tmp_path],
            max_size_bytes=100_000,
            directory=tmp_path / "cache",
        )
        await service.start()
        try:
            yield service
        finally:
            engine.may_read.set()
            engine.release()
            await service.close()
            database.close()
            tiers.close()

    return start


@pytest.fixture
async def service(start_service: Start) -> AsyncIterator[AdaptersService]:
    """One such service."""
    async with start_service() as service:
        yield service
