"""The adapters service over the real engine and model, with sequences running all the while."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.adapters.types import AdapterRecord, AdapterState
from argosy_services.engine.base import Engine, Finish, Request, Sampling, StepOutput
from argosy_services.engine.factory import create_engine
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings
from argosy_services.storage.database import Database

# PEFT asks transformers for a property that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

S = AdapterState
GREEDY = Sampling(temperature=0.0)
PROMPT = [504, 2443, 282, 4649, 314]


class Running:
    """An engine and what it has answered so far, by request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[str, list[int]] = defaultdict(list)
        self.finished: dict[str, StepOutput] = {}
        self._changed = threading.Condition()
        engine.start(self._on_step)

    def _on_step(self, outputs: list[StepOutput]) -> None:
        with self._changed:
            for output in outputs:
                self.tokens[output.request_id] += output.token_ids
                if output.finish:
                    self.finished[output.request_id] = output
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(condition, 120)

        await asyncio.to_thread(wait)

    def submit(self, name: str, *, adapter: str | None = None, tokens: int) -> None:
        self.engine.submit(Request(name, PROMPT, tokens, GREEDY, adapter=adapter))

    async def answer(self, name: str, *, adapter: str | None = None, tokens: int = 12) -> list[int]:
        self.submit(name, adapter=adapter, tokens=tokens)
        await self.until(lambda: name in self.finished)
        assert self.finished[name].finish is Finish.LENGTH, self.finished[name].error
        return self.tokens[name]


@pytest.fixture(scope="module")
def running(smollm2: LocalModel) -> Iterator[Running]:
    settings = GenerationSettings(dtype="float32", kv_cache_tokens=4_096, max_adapters=2, max_adapter_rank=8)
    engine = create_engine(smollm2, settings, (smollm2.path / "tokenizer.json").read_text())
    yield Running(engine)
    assert engine.stats().adapters == 0
    assert engine.stats().kv_blocks_in_use == 0
    engine.close()


@pytest.fixture(scope="module")
def root(smollm2: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters of the model, and one of a model that is half as wide."""
    root = tmp_path_factory.mktemp("root")
    config = AutoConfig.from_pretrained(smollm2.path)
    narrow = AutoConfig.from_pretrained(
        smollm2.path, hidden_size=config.hidden_size // 2, num_attention_heads=3, num_key_value_heads=1
    )
    models = {"one": config, "two": config, "three": config, "narrow": narrow}
    for seed, (name, model_config) in enumerate(models.items()):
        torch.manual_seed(seed)
        with torch.device("meta"):  # only the shapes of the base model matter here
            base = AutoModelForCausalLM.from_config(model_config)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), low_cpu_mem_usage=False)
        state = {key: torch.randn(value.shape) * 0.2 for key, value in model.state_dict().items() if "lora_" in key}
        model.save_pretrained(root / name, state_dict={key.replace(".default", ""): t for key, t in state.items()})
    return root


@pytest.fixture
async def service(running: Running, root: Path, tmp_path: Path) -> AsyncIterator[AdaptersService]:
    database = Database(f"sqlite:///{tmp_path / 'argosy.db'}")
    tiers = AdapterTiers(running.engine, slots=2, memory_bytes=1 << 26)
    service = AdaptersService(
        {"smol": tiers}, database, roots=[root], max_size_bytes=1 << 26, directory=tmp_path / "cache"
    )
    await service.start()
    yield service
    for record in service.records():
        await service.unload(record.name, 0)
        await settled(service, record.name)
    await service.close()
    assert list((tmp_path / "cache").rglob("adapter_*")) == []
    tiers.close()
    database.close()


async def settled(service: AdaptersService, name: str) -> AdapterRecord:
    async for _ in service.watch([name], until_settled=True):
        pass
    return service.get(name)


async def load(service: AdaptersService, root: Path, name: str) -> AdapterRecord:
    await service.load(name, f"file://{root / name}")
    return await settled(service, name)


async def test_loading_and_unloading_changes_nothing_for_those_who_run(
    running: Running, service: AdaptersService, root: Path
) -> None:
    alone = await running.answer("alone", tokens=48)
    assert (await load(service, root, "one")).state is S.READY
    async with service.lease("one", lambda: None) as lease:
        tuned = await running.answer("tuned alone", adapter=lease.key, tokens=32)
        assert tuned[:12] != alone[:12]
        running.submit("base", tokens=48)
        running.submit("tuned", adapter=lease.key, tokens=32)
        for _ in range(4):
            assert (await load(service, root, "two")).state is S.READY
            await service.unload("two", 0)
            assert (await settled(service, "two")).state is S.UNLOADED
        await running.until(lambda: {"base", "tuned"} <= running.finished.keys())
    assert running.tokens["base"] == alone
    assert running.tokens["tuned"] == tuned


async def test_a_drained_adapter_leaves_after_its_last_user(
    running: Running, service: AdaptersService, root: Path
) -> None:
    await load(service, root, "one")
    async with service.lease("one", lambda: None) as lease:
        running.submit("last", adapter=lease.key, tokens=48)
        await service.unload("one", 60)
        await running.until(lambda: "last" in running.finished)
        assert running.engine.stats().adapters == 1
    assert (await settled(service, "one")).state is S.UNLOADED
    assert running.finished["last"].finish is Finish.LENGTH


async def test_a_user_that_does_not_leave_is_ended_and_only_that_one(
    running: Running, service: AdaptersService, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("argosy_services.adapters.carrier._REVOKE_GRACE_S", 0.05)
    await load(service, root, "one")
    async with service.lease("one", lambda: None) as lease:
        running.submit("stubborn", adapter=lease.key, tokens=1_000)
        running.submit("other", tokens=48)
        await running.until(lambda: bool(running.tokens["stubborn"]))
        await service.unload("one", 0)
        assert (await settled(service, "one")).state is S.UNLOADED
    await running.until(lambda: {"stubborn", "other"} <= running.finished.keys())
    error = running.finished["stubborn"].error
    assert error is not None
    assert error.reason is Reason.ADAPTER_NOT_READY
    assert running.finished["other"].finish is Finish.LENGTH


async def test_more_adapters_than_slots_answer_as_each_one_alone(
    running: Running, service: AdaptersService, root: Path
) -> None:
    names = ("one", "two", "three")
    for name in names:
        assert (await load(service, root, name)).state is S.READY

    async def ask(name: str, number: int) -> list[int]:
        async with service.lease(name, lambda: None) as lease:
            return await running.answer(f"{name} {number}", adapter=lease.key, tokens=8)

    alone = {name: await ask(name, 0) for name in names}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    asked = [(name, number) for number in range(1, 5) for name in names]
    answers = await asyncio.gather(*(ask(*each) for each in asked))
    assert [alone[name] for name, _ in asked] == answers
    assert running.engine.stats().adapters == 2


async def test_an_adapter_of_another_model_is_refused(service: AdaptersService, root: Path) -> None:
    record = await load(service, root, "narrow")
    assert record.state is S.FAILED
    assert record.failure is not None
    assert record.failure.reason == "WRONG_BASE_MODEL"
    assert "576" in record.failure.message
    assert "288" in record.failure.message


async def test_a_promised_slot_is_there_for_whatever_is_submitted_next(running: Running, root: Path) -> None:
    weights = running.engine.read_adapter(root / "one")
    running.engine.load_adapter("settled", weights).result(30)
    wanted = await running.answer("with a settled adapter", adapter="settled")
    running.engine.unload_adapter("settled").result(30)
    running.submit("long before", tokens=150)
    await running.until(lambda: bool(running.tokens["long before"]))
    for turn in range(6):
        assert running.engine.load_adapter("promised", weights).done(), "no step has to end first"
        assert await running.answer(f"at once {turn}", adapter="promised") == wanted
        running.engine.unload_adapter("promised").result(30)
    await running.until(lambda: "long before" in running.finished)


async def test_no_more_slots_are_promised_than_there_are(running: Running, root: Path) -> None:
    weights = running.engine.read_adapter(root / "one")
    for key in ("first", "second"):
        running.engine.load_adapter(key, weights).result(30)
    refused = running.engine.load_adapter("third", weights).exception(30)
    assert isinstance(refused, ArgosyError)
    assert refused.reason is Reason.ADAPTER_SLOTS_FULL
    running.engine.unload_adapter("first").result(30)
    running.engine.load_adapter("third", weights).result(30)
    await running.answer("in the third", adapter="third")
    for key in ("second", "third"):
        running.engine.unload_adapter(key).result(30)
    assert running.engine.stats().adapters == 0
