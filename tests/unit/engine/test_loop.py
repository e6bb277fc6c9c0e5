"""What the engine's thread does beside steps, and what other threads do beside its steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch

from argosy_services.engine.base import Finish, Request, StepOutput
from argosy_services.engine.torch_engine import loop as module
from argosy_services.engine.torch_engine.grammar import GrammarCompiler
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.loop import EngineLoop, Parts
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.masks import MaskMaker
from argosy_services.engine.torch_engine.sampler import Sampler
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.engine.torch_engine.step import RowSpan, Work, wanted_rows
from argosy_services.models.types import LocalModel

VOCABULARY = 49_152
LONG_S = 30.0


@dataclass
class HeldRunner:
    """A runner whose steps begin and end when the test says so, and which has some memory left to prepare."""

    unsettled: int = 3
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    may_end: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    settled: threading.Event = field(default_factory=threading.Event)

    def run(self, work: Sequence[Work]) -> tuple[torch.Tensor, list[RowSpan]]:
        self.begun.release()
        assert self.may_end.acquire(timeout=LONG_S)
        rows, spans = wanted_rows(work)
        return torch.zeros(len(rows), VOCABULARY), spans

    def greedy(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=-1)

    def settle(self) -> bool:
        self.unsettled -= 1
        if not self.unsettled:
            self.settled.set()
        return self.unsettled > 0

    def close(self) -> None:
        return


@contextmanager
def started(runner: HeldRunner, tokenizer: LocalModel, outputs: list[StepOutput]) -> Iterator[EngineLoop]:
    grammars = GrammarCompiler((tokenizer.path / "tokenizer.json").read_text(), VOCABULARY, (0,))
    parts = Parts(
        model="held",
        scheduler=Scheduler(BlockAllocator(64, 16), max_batch=4, max_step_tokens=64),
        runner=runner,
        adapters=AdapterSlots(1),
        grammars=grammars,
        masks=MaskMaker(VOCABULARY, 1),
        sampler=Sampler(runner.greedy),
        speculator=None,
        threads=1,
    )
    loop = EngineLoop(parts, outputs.extend)
    loop.start()
    try:
        yield loop
    finally:
        runner.may_end.release(100)
        loop.stop()
        grammars.close()


def test_a_thread_waits_until_the_next_step_is_computed(smollm2: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOMENT_S", 100 * LONG_S)
    runner, outputs = HeldRunner(), []
    with started(runner, smollm2, outputs) as loop:
        loop.await_step()  # Nothing is running.
        loop.offer(Request("one", [5, 6, 7], max_tokens=4), module.Limits(8, 1024))
        for _ in range(2):
            assert runner.begun.acquire(timeout=LONG_S)
            runner.may_end.release()
        assert runner.begun.acquire(timeout=LONG_S)
        waiting = threading.Thread(target=loop.await_step, daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "it went on beside a step that had begun before"
        runner.may_end.release()
        assert runner.begun.acquire(timeout=LONG_S)
        waiting.join(LONG_S)
        assert not waiting.is_alive()


def test_a_thread_waits_a_moment_at_most(smollm2: LocalModel) -> None:
    runner = HeldRunner()
    with started(runner, smollm2, []) as loop:
        loop.offer(Request("one", [5, 6, 7], max_tokens=4), module.Limits(8, 1024))
        runner.may_end.release()
        for _ in range(2):
            assert runner.begun.acquire(timeout=LONG_S)
        waiting = threading.Thread(target=loop.await_step, daemon=True)
        waiting.start()
        waiting.join(LONG_S)
        assert not waiting.is_alive(), "it waits for a step that takes long"


def test_an_engine_at_rest_settles_and_still_takes_work(smollm2: LocalModel) -> None:
    runner, outputs = HeldRunner(), []
    runner.may_end.release(100)
    with started(runner, smollm2, outputs) as loop:
        assert runner.settled.wait(LONG_S)
        loop.offer(Request("one", [5, 6, 7], max_tokens=2), module.Limits(8, 1024))
        for _ in range(2):
            assert runner.begun.acquire(timeout=LONG_S)
    assert [output.finish for output in outputs] == [None, Finish.LENGTH]
    assert runner.unsettled == 0, "it is asked on where nothing is left"
