"""The torch engine beside transformers, both in float32 on the same weights."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from argosy_services.engine.base import Engine, Finish, Request, StepOutput, TokenLogprobs
from argosy_services.engine.factory import create_engine
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings


@dataclass
class Answer:
    """Everything that came back for one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    error: Exception | None = None
    cached_tokens: int = 0


class Collector:
    """Gathers an engine's outputs by request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.answers: dict[str, Answer] = defaultdict(Answer)
        self._changed = threading.Condition()
        self.on_token: Callable[[StepOutput], None] | None = None
        engine.start(self._on_step)

    def _on_step(self, outputs: list[StepOutput]) -> None:
        with self._changed:
            for output in outputs:
                answer = self.answers[output.request_id]
                answer.tokens += output.token_ids
                answer.logprobs += output.logprobs
                answer.finish, answer.error = output.finish, output.error
                answer.cached_tokens = max(answer.cached_tokens, output.cached_tokens)
                if self.on_token is not None:
                    self.on_token(output)
            self._changed.notify_all()

    def wait(self, ids: Sequence[str], timeout: float = 240) -> dict[str, Answer]:
        with self._changed:
            done = self._changed.wait_for(lambda: all(self.answers[name].finish for name in ids), timeout)
        assert done, "the engine did not finish in time"
        return {name: self.answers.pop(name) for name in ids}

    def run(self, requests: Sequence[Request]) -> dict[str, Answer]:
        for request in requests:
            self.engine.submit(request)
        return self.wait([request.id for request in requests])


def settings(**changes: object) -> GenerationSettings:
    return GenerationSettings(**{"dtype": "float32", "kv_cache_tokens": 12_288, "threads": 1, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def smol(smollm2: LocalModel) -> Iterator[Collector]:
    """The engine on the bundled model, with room for every test here."""
    engine = create_engine(smollm2, settings(), (smollm2.path / "tokenizer.json").read_text())
    collector = Collector(engine)
    yield collector
    engine.check_integrity().result()  # type: ignore[attr-defined]
    assert engine.stats().kv_blocks_in_use == 0
    engine.close()


@pytest.fixture(scope="session")
def reference(smollm2: LocalModel) -> torch.nn.Module:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2.path, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def prompts(smollm2: LocalModel) -> list[list[int]]:
    """64 prompts of 1 to 220 tokens, cut from ordinary English."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))
    topics = ("harbours", "the tides", "a small boat", "old maps", "trade winds", "lighthouses", "salt", "the moon")
    texts = [
        f"Chapter {index}. What sailors know about {topics[index % 8]} and {topics[(index * 3 + 1) % 8]} is this: " * 24
        for index in range(64)
    ]
    lengths = [1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 33, 48, 64, 80, 100, 220]
    return [tokenizer.encode(text).ids[: lengths[index % 16]] for index, text in enumerate(texts)]


@torch.inference_mode()
def greedy_errors(model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
    """Positions of an answer at which the model's likeliest token is another one.

    None of them means, by induction over the answer, that greedy decoding gives exactly this answer.
    """
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return (logits.argmax(-1) != torch.tensor(answer)).nonzero().flatten().tolist()
