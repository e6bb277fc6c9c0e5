"""transformers: `python -m side_by_side.transformers_child MODEL_DIRECTORY`, in an environment with transformers."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from side_by_side.base import Request, TokenTimes
from side_by_side.child import serve

_PAGE_TOKENS = 256
_PAGES = 256
_STEP_TOKENS = 512
_MAX_SEQUENCES = 64


class Transformers:
    """Its continuous batching (what `generate_batch` runs), with one manager for all loads."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, local_files_only=True).eval()
        self._manager = network.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=64),
            ContinuousBatchingConfig(
                page_size=_PAGE_TOKENS,
                num_blocks=_PAGES,
                max_batch_tokens=_STEP_TOKENS,
                max_requests_per_batch=_MAX_SEQUENCES,
            ),
        )
        self._manager.start()

    def generate(self, requests: Sequence[Request]) -> TokenTimes:
        """Runs all requests at once."""
        started = time.perf_counter()
        names = [
            self._manager.add_request(
                list(request.prompt), max_new_tokens=request.max_tokens, record_timestamps=True, eos_token_id=-1
            )
            for request in requests
        ]
        times: dict[str, list[float]] = {}
        while len(times) < len(names):
            output = self._manager.get_result(timeout=1)
            if output is None:
                if not self._manager.is_running():
                    raise RuntimeError("the manager's thread ended")
                continue
            if output.error is not None:
                raise RuntimeError(output.error)
            if output.is_finished():
                times[output.request_id] = [token - started for token in output.timestamps or ()]
        return [times[name] for name in names if name is not None]


if __name__ == "__main__":
    serve(lambda: Transformers(sys.argv[1]), ["transformers", "torch"])
