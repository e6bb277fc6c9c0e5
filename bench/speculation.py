"""Tokens a second with and without guessing ahead, by what is written and how many write at once.

    python bench/speculation.py [rounds]     3 unless given

Two engines of one process take turns, so that whatever else the machine does meets both. The loads: to repeat a text,
where guesses are good; a story, where there is little to guess; and JSON under a schema. Greedy.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time

from argosy_services import metrics
from argosy_services.engine.base import Engine, Grammar, GrammarKind, Request, Sampling, StepOutput
from argosy_services.engine.factory import create_engine
from argosy_services.models.store import ModelStore
from argosy_services.settings import GenerationSettings, Settings
from argosy_services.tokenization.backend import Tokenizer

STREAMS = (1, 4, 16, 32)
TOKENS = 128
MODEL = "smollm2-135m-instruct"
_TEXT = (
    "The harbour of Elsmouth lies where the river meets the sea. Its lighthouse, built of grey stone, was lit in 1821. "
    "Every spring the pilots measure the channel anew, because the winter storms move the sand banks. "
)
_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0, "maximum": 999} for name in ("length", "beam", "crew")},
        "required": ["length", "beam", "crew"],
        "additionalProperties": False,
    },
    "minItems": 12,
    "maxItems": 12,
}
LOADS = {
    "repeat": (f"{_TEXT * 2}The same text once more: {_TEXT[:60]}", None),
    "story": ("Once upon a time, a young sailor", None),
    "json": ("Twelve ships: ", Grammar(GrammarKind.JSON_SCHEMA, json.dumps(_SCHEMA))),
}


class Side:
    """One engine and how to run a load on it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: set[str] = set()
        self._tokens = 0
        self._done = threading.Event()
        engine.start(self._on_step)

    def _on_step(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            self._tokens += len(output.token_ids)
            if output.finish is not None:
                self._left.discard(output.request_id)
        if not self._left:
            self._done.set()

    def run(self, prompt: list[int], grammar: Grammar | None, streams: int) -> float:
        """Tokens a second, prefill included."""
        requests = [Request(str(n), prompt, TOKENS, Sampling(temperature=0.0), grammar=grammar) for n in range(streams)]
        self._left, self._tokens = {request.id for request in requests}, 0
        self._done.clear()
        started = time.perf_counter()
        for request in requests:
            self._engine.submit(request)
        self._done.wait()
        return self._tokens / (time.perf_counter() - started)

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


def accepted() -> tuple[float, float]:
    """Tokens drafted and accepted until now."""
    return metrics.DRAFTED_TOKENS.labels(model=MODEL).now(), metrics.ACCEPTED_TOKENS.labels(model=MODEL).now()


def main(rounds: int = 3) -> None:
    """Measures and prints."""
    model = ModelStore(Settings().models_dir).get(MODEL)
    tokenizer = Tokenizer.load(model)
    sides = {
        name: Side(create_engine(model, GenerationSettings(speculation=name), tokenizer.json))  # type: ignore[arg-type]
        for name in ("off", "auto")
    }
    print("load    streams    off tok/s   auto tok/s   ratio   drafted   right")
    for load, (text, grammar) in LOADS.items():
        prompt = tokenizer.encode(text)
        for streams in STREAMS:
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for side in sides.values():
                side.run(prompt, grammar, streams)
            before = accepted()
            for _ in range(rounds):
                for name, side in sides.items():
                    rates[name].append(side.run(prompt, grammar, streams))
            drafted, right = (now - then for now, then in zip(accepted(), before, strict=True))
            off, auto = (statistics.median(rates[name]) for name in sides)
            share = f"{right / drafted:7.0%}" if drafted else "      -"
            print(f"{load:8}{streams:7}{off:13.0f}{auto:13.0f}{auto / off:8.2f}{drafted:10.0f}{share}", flush=True)
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
