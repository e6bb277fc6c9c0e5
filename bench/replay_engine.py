"""An engine that computes nothing, to measure everything around it; `layers.py` starts fleets with it.

    python bench/replay_engine.py     an embedded server with it, on the ports of the environment

On Ray, `replay_engine:generation` takes the place of the generation application.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ray import serve

from argosy_services import ray_app
from argosy_services.bootstrap import Fleet
from argosy_services.embedded import serve as serve_embedded
from argosy_services.engine.base import (
    AdapterWeights,
    EngineInfo,
    EngineStats,
    Finish,
    Grammar,
    Request,
    StepCallback,
    StepOutput,
    Timings,
)
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings, Settings

STEP_S = float(os.environ.get("ARGOSY_BENCH_STEP_S", "0.025"))
# Each cancellation that reaches the engine is noted there, as nanoseconds of the wall clock.
CANCELS = Path(os.environ.get("ARGOSY_BENCH_CANCELS", "/dev/null"))
_WORDS = (1073, 3953, 314, 4461, 284, 5096)


class ReplayEngine:
    """Gives every sequence its first token at once and one more at each step, as many as were asked for."""

    def __init__(
        self, model: LocalModel, settings: GenerationSettings, _tokenizer_json: str, _draft: LocalModel | None = None
    ) -> None:
        self.max_waiting = settings.max_waiting
        self.max_waiting_tokens = settings.max_waiting_tokens
        self.info = EngineInfo("replay", model.name, "none", "none", 0, 8_192, 49_152, frozenset({2}), 0, 0)
        self._wake = threading.Condition()
        self._new: list[Request] = []
        self._left: dict[str, int] = {}
        self._on_step: StepCallback | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)

    @property
    def healthy(self) -> bool:
        """It never fails."""
        return not self._closed

    def start(self, on_step: StepCallback) -> None:
        """Starts the thread."""
        self._on_step = on_step
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Takes a sequence."""
        with self._wake:
            self._new.append(request)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Notes the time and drops the sequence."""
        now = time.time_ns()
        with self._wake:
            live = self._left.pop(request_id, None)
        if live is not None:
            with CANCELS.open("a") as notes:
                notes.write(f"{now}\n")

    def check_grammar(self, grammar: Grammar) -> None:
        """Takes any."""

    def read_adapter(self, directory: Path) -> AdapterWeights:
        """There are none."""
        raise NotImplementedError

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """There are none."""
        raise NotImplementedError

    def unload_adapter(self, key: str) -> Future[None]:
        """There are none."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """How many sequences are here."""
        return EngineStats(len(self._left), len(self._new), 0, 0, 1, 0, 0, 0)

    def _run(self) -> None:
        next_step = time.monotonic()
        while not self._closed:
            with self._wake:
                if not self._new:
                    self._wake.wait(None if not self._left else max(0.0, next_step - time.monotonic()))
                fresh, self._new = self._new, []
                self._left.update((request.id, request.max_tokens) for request in fresh)
                due = list(self._left) if self._left and time.monotonic() >= next_step else [new.id for new in fresh]
                outputs = [self._next(name) for name in due]
            if time.monotonic() >= next_step:
                next_step = max(next_step + STEP_S, time.monotonic())
            if outputs and self._on_step is not None:
                self._on_step(outputs)

    def _next(self, name: str) -> StepOutput:
        self._left[name] -= 1
        left = self._left[name]
        if left == 0:
            del self._left[name]
        timings = Timings(queue_s=0.0, prefill_s=0.0, decode_s=0.0)
        return StepOutput(
            name,
            token_ids=(_WORDS[left % len(_WORDS)],),
            finish=Finish.LENGTH if left == 0 else None,
            timings=timings,
        )


class ReplayDeployment(ray_app.EngineDeployment):
    """The engine deployment with it."""

    create = staticmethod(ReplayEngine)


def generation(given: Mapping[str, Any]) -> serve.Application:
    """The generation application with it."""
    engine = serve.deployment(name="Engine")(ReplayDeployment).bind(given)  # type: ignore[attr-defined]
    return serve.deployment(name="Generation")(ray_app.GenerationDeployment).bind(given, engine)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(serve_embedded(Settings(), lambda settings: Fleet(settings, ReplayEngine)))
