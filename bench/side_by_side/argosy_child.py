"""Argosy's engine called in process, without a server: `python -m side_by_side.argosy_child [NAME=DIRECTORY ...]`.

Settings come from ARGOSY_* variables. The arguments are adapters to load.
"""

from __future__ import annotations

import itertools
import os
import queue
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from side_by_side.base import Request, TokenTimes
from side_by_side.child import serve


class ArgosyEngine:
    """The engine that the settings name; a callback of its thread notes the time of each token."""

    def __init__(self, adapters: Sequence[str]) -> None:
        # As `argosy serve` has it; read once, when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        from argosy_services.engine import base
        from argosy_services.engine.factory import create_engine
        from argosy_services.models.store import ModelStore
        from argosy_services.settings import Settings
        from argosy_services.tokenization.backend import Tokenizer

        settings = Settings()
        model = ModelStore(settings.models_dir).pull(settings.generation.model)
        self._base = base
        self._engine = create_engine(model, settings.generation, Tokenizer.load(model).json)
        self._numbers = itertools.count()
        self._steps: queue.SimpleQueue[tuple[float, list[base.StepOutput]]] = queue.SimpleQueue()
        self._engine.start(lambda outputs: self._steps.put((time.perf_counter(), outputs)))
        for name, directory in (adapter.split("=", 1) for adapter in adapters):
            self._engine.load_adapter(name, self._engine.read_adapter(Path(directory))).result()

    def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs all requests at once."""
        greedy = self._base.Sampling(temperature=0.0)
        names = [str(next(self._numbers)) for _ in requests]
        times: dict[str, list[float]] = {name: [] for name in names}
        started = time.perf_counter()
        for name, request in zip(names, requests, strict=True):
            self._engine.submit(
                self._base.Request(name, request.prompt, request.max_tokens, greedy, adapter=request.adapter or None)
            )
        left = len(requests)
        while left:
            now, outputs = self._steps.get()
            for output in outputs:
                if output.error is not None:
                    raise output.error
                times[output.request_id] += [now - started] * len(output.token_ids)
                left -= output.finish is not None
        return [times[name] for name in names]


if __name__ == "__main__":
    serve(lambda: ArgosyEngine(sys.argv[1:]), ["torch"])
