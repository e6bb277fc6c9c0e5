"""OpenVINO GenAI: `python -m side_by_side.openvino_child MODEL.gguf`, in an environment with openvino-genai."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence

from side_by_side.base import Request, TokenTimes
from side_by_side.child import serve

_CACHE_GIB = 2
_MAX_SEQUENCES = 64


class OpenVino:
    """Its continuous batching; step by step, so that each token's time is seen."""

    def __init__(self, model: str) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GIB
        scheduler.max_num_seqs = _MAX_SEQUENCES
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
        self._numbers = itertools.count()

    def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs all requests at once."""
        import numpy as np
        import openvino
        import openvino_genai

        started = time.perf_counter()
        handles = [
            self._pipeline.add_request(
                next(self._numbers),
                openvino.Tensor(np.array([request.prompt], dtype=np.int64)),
                openvino_genai.GenerationConfig(max_new_tokens=request.max_tokens, ignore_eos=True, do_sample=False),
            )
            for request in requests
        ]
        times: TokenTimes = [[] for _ in requests]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - started
            for stream, handle in zip(times, handles, strict=True):
                while handle.can_read():
                    stream.extend(now for output in handle.read().values() for _ in output.generated_ids)
        return times


if __name__ == "__main__":
    serve(lambda: OpenVino(sys.argv[1]), ["openvino-genai", "openvino"])
