"""A generation service over a scripted engine and the real tokenizer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from argosy_services.engine.base import EngineInfo, Request
from argosy_services.generation.service import GenerationService, ServedModel
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer

from .scripted import Script, ScriptedEngine, ScriptedLeases

EOS = 2


@dataclass
class Stage:
    """What a test works with. `texts` is what the engine answers, choice by choice, the last one for ever."""

    tokenizer: Tokenizer
    engine: ScriptedEngine
    leases: ScriptedLeases
    service: GenerationService
    scripts: list[Script] = field(default_factory=list)

    def says(self, *texts: str, **script: object) -> None:
        """Has the engine answer with texts and the end token."""
        self.scripts[:] = [Script([*self.ids(text), EOS], **script) for text in texts]  # type: ignore[arg-type]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    async def idle(self) -> None:
        """Waits until the engine has nothing to do; the test fails where that does not come."""
        await eventually(lambda: not self.engine.running)
        assert self.leases.held == 0


async def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.002)


@pytest.fixture(scope="session")
def tokenizer(smollm2: LocalModel) -> Tokenizer:
    return Tokenizer.load(smollm2)


@pytest.fixture
async def stage(smollm2: LocalModel, tokenizer: Tokenizer) -> AsyncIterator[Stage]:
    scripts: list[Script] = []

    def script(request: Request) -> Script:
        index = int(request.id.rpartition("-")[2])
        return scripts[min(index, len(scripts) - 1)]

    engine = ScriptedEngine(script, engine_info())
    leases = ScriptedLeases()
    service = GenerationService([ServedModel(smollm2, engine, tokenizer)], leases)
    service.start()
    yield Stage(tokenizer, engine, leases, service, scripts)
    service.close()
    assert engine.fault is None


def engine_info() -> EngineInfo:
    return EngineInfo(
        engine="scripted",
        architecture="LlamaForCausalLM",
        dtype="float32",
        device="cpu",
        parameter_count=134_515_008,
        max_context_tokens=512,
        vocabulary_size=49_152,
        eos_token_ids=frozenset({EOS}),
        max_adapters=4,
        max_adapter_rank=16,
    )
