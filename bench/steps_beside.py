"""How much longer decoding steps take beside a process that computes now and then: the engine's threads share work out
anew for each operation, so that a core which is taken from one of them should cost no more than that core.

    python bench/steps_beside.py [rounds]

The other process computes for 5 of each 20 ms, an eighth of two cores. Steps alone and beside it are timed in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence as Items

import numpy as np

from argosy_services.engine.base import Request
from argosy_services.engine.torch_engine.architectures import read_config
from argosy_services.engine.torch_engine.runners import Runner, load_runner
from argosy_services.engine.torch_engine.sequence import Sequence
from argosy_services.engine.torch_engine.step import Work
from argosy_services.models.store import ModelStore
from argosy_services.settings import Settings

ROWS = (1, 8, 32, 64)
PROMPT = 192
SECONDS = 2.0
OTHER = """
import time
while True:
    began = time.thread_time()
    while time.thread_time() - began < 0.005:
        pass
    time.sleep(0.015)
"""


def sequences(runner: Runner, block_tokens: int) -> list[Sequence]:
    """As many as the largest step has, all but the last token of their prompts computed."""
    source, each = np.random.default_rng(0), -(-(PROMPT + 1) // block_tokens)
    made = [
        Sequence.of(Request(f"r{number}", source.integers(1_000, 49_152, PROMPT).tolist(), 1))
        for number in range(max(ROWS))
    ]
    for number, sequence in enumerate(made):
        sequence.table.extend(range(1 + number * each, 1 + (number + 1) * each))
        runner.run([Work(sequence, 0, PROMPT - 1)])
    return made


def step_ms(runner: Runner, work: Items[Work]) -> float:
    """The median of some seconds of steps."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end:
        runner.run(work)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


def main(rounds: int) -> None:
    """Measures, and prints medians over the rounds."""
    settings = Settings()
    model = ModelStore(settings.models_dir).pull(settings.generation.model)
    runner = load_runner(model.path, read_config(model.path), settings.generation, 2 * PROMPT).runner
    made = sequences(runner, settings.generation.block_tokens)
    for rows in ROWS:
        work = [Work(sequence, PROMPT - 1, 1) for sequence in made[:rows]]
        pairs: list[tuple[float, float]] = []
        for _ in range(rounds):
            alone = step_ms(runner, work)
            with subprocess.Popen([sys.executable, "-c", OTHER]) as other:
                try:
                    pairs.append((alone, step_ms(runner, work)))
                finally:
                    other.kill()
        alone, beside = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(second / first for first, second in pairs)
        print(f"{rows} rows: alone {alone:.1f} ms, beside another process {beside:.1f} ms, {ratio:.2f} times as long")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
