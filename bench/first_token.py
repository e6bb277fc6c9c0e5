"""First tokens of short prompts beside 32 streams, and what those notice of it, with the engine in process.

    python bench/first_token.py [prompts, 60]

Prompts of 5 and of 20 tokens come one by one at random times. In turns they may be computed ahead of the streams' next
tokens, and may not.
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from itertools import pairwise

from argosy_services.engine.base import Request, StepOutput
from argosy_services.engine.torch_engine import scheduler
from argosy_services.engine.torch_engine.engine import TorchEngine
from argosy_services.models.store import ModelStore
from argosy_services.settings import Settings

STREAMS, ROUNDS = 32, 3
# Which part of a step may be fixed for prompts to be computed ahead: as the engine has it, and none.
SIDES = {"ahead": scheduler.MOST_FIXED, "with the batch": -1.0}


class Watch:
    """When each request's tokens came."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._came = threading.Condition()

    def __call__(self, outputs: list[StepOutput]) -> None:
        """Takes in what a step gave."""
        now = time.perf_counter()
        with self._came:
            for output in outputs:
                self.times[output.request_id].append(now)
            self._came.notify_all()

    def first(self, request_id: str) -> float:
        """The time of a request's first token, once it is there."""
        with self._came:
            self._came.wait_for(lambda: request_id in self.times)
            return self.times[request_id][0]


def measure(engine: TorchEngine, watch: Watch, draw: random.Random, tokens: int, prompts: int) -> list[float]:
    """Seconds to the first token of some prompts."""
    waited: list[float] = []
    for _ in range(prompts):
        time.sleep(draw.uniform(0.1, 0.2))
        request = request_of(draw, f"prompt {draw.random()}", tokens, answer=2)
        submitted = time.perf_counter()
        engine.submit(request)
        waited.append(watch.first(request.id) - submitted)
    return waited


def request_of(draw: random.Random, request_id: str, tokens: int, answer: int) -> Request:
    """A prompt of tokens that no other one begins with."""
    return Request(request_id, [draw.randrange(5, 40_000) for _ in range(tokens)], answer)


def main(prompts: int) -> None:
    """Measures and prints."""
    settings = Settings()
    model = ModelStore(settings.models_dir).pull(settings.generation.model)
    engine = TorchEngine.load(model, settings.generation, (model.path / "tokenizer.json").read_text())
    watch, draw = Watch(), random.Random(0)
    engine.start(watch)
    streams = [f"stream {number}" for number in range(STREAMS)]
    print("| prompts | computed | first token, median | most | a stream's gap, median | most |")
    print("| --- | --- | --- | --- | --- | --- |")
    for tokens in (5, 20):
        waited: dict[str, list[float]] = defaultdict(list)
        gaps: dict[str, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for stream in streams:
                watch.times.pop(stream, None)
                engine.submit(request_of(draw, stream, 12, answer=1_500))
            for stream in streams:
                watch.first(stream)
            for name, most_fixed in SIDES.items():
                scheduler.MOST_FIXED = most_fixed
                started = time.perf_counter()
                waited[name] += measure(engine, watch, draw, tokens, prompts // ROUNDS)
                for stream in streams:
                    since = [at for at in watch.times[stream] if at > started]
                    gaps[name] += [after - before for before, after in pairwise(since)]
            for stream in streams:
                engine.cancel(stream)
            engine.check_integrity().result()
        for name in SIDES:
            firsts, between = ([1000 * value for value in values] for values in (waited[name], gaps[name]))
            print(
                f"| {tokens} tokens | {name} | {statistics.median(firsts):.0f} ms | {max(firsts):.0f} ms | "
                f"{statistics.median(between):.0f} ms | {max(between):.0f} ms |"
            )
    engine.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
