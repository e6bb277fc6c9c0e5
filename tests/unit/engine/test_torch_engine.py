"""What the torch engine says of itself, over a runner that breaks when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from argosy_services.engine.base import EngineInfo, Finish, Request, Sampling, StepOutput
from argosy_services.engine.torch_engine.engine import TorchEngine
from argosy_services.engine.torch_engine.grammar import GrammarCompiler
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.runners import Loaded
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows
from argosy_services.errors import Reason
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings

VOCABULARY = 49_152
GREEDY = Sampling(temperature=0.0)


@dataclass
class BrittleRunner:
    """Draws token 0, or fails."""

    broken: bool = False

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        if self.broken:
            raise RuntimeError("out of memory")
        rows, spans = wanted_rows(work)
        return torch.zeros(len(rows), VOCABULARY), spans

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=-1)

    def settle(self) -> bool:
        return False

    def close(self) -> None:
        return


class Collector:
    """The last output of each sequence."""

    def __init__(self) -> None:
        self.ends: dict[str, StepOutput] = {}
        self._news = threading.Condition()

    def __call__(self, outputs: list[StepOutput]) -> None:
        with self._news:
            self.ends.update({output.request_id: output for output in outputs if output.finish is not None})
            self._news.notify_all()

    def end(self, request_id: str) -> StepOutput:
        with self._news:
            assert self._news.wait_for(lambda: request_id in self.ends, timeout=30)
        return self.ends[request_id]


@pytest.fixture
def runner() -> BrittleRunner:
    return BrittleRunner()


@pytest.fixture
def engine(smollm2: LocalModel, runner: BrittleRunner) -> Iterator[TorchEngine]:
    info = EngineInfo("torch", "llama", "float32", "cpu", 0, 2048, VOCABULARY, frozenset(), 1, 8)
    made = TorchEngine(
        smollm2,
        GenerationSettings(speculation="off", kv_cache_tokens=2048),
        Loaded(runner, AdapterSlots(1), "float32", torch.float32, 0),
        draft=None,
        shapes={},
        info=info,
        grammars=GrammarCompiler((smollm2.path / "tokenizer.json").read_text(), VOCABULARY, (0,)),
    )
    yield made
    made.close()


def test_it_is_healthy_until_a_fault_or_its_end(engine: TorchEngine, runner: BrittleRunner) -> None:
    collector = Collector()
    assert engine.healthy, "it has not been started, and will take sequences then"
    engine.start(collector)
    engine.submit(Request("whole", [5], 2, GREEDY))
    assert collector.end("whole").finish is Finish.LENGTH
    assert engine.healthy
    runner.broken = True
    engine.submit(Request("lost", [5], 2, GREEDY))
    error = collector.end("lost").error
    assert error is not None
    assert error.reason is Reason.ENGINE_FAILED
    assert not engine.healthy, "known no later than the end of what ran"


def test_a_closed_engine_is_not_healthy(engine: TorchEngine) -> None:
    engine.start(Collector())
    engine.close()
    assert not engine.healthy
