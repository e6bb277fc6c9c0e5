"""The first use of an adapter, on which the library reads its files: better before any caller waits for it."""

from __future__ import annotations

import time
from typing import Any

from argosy_services.engine.base import Request, Sampling
from argosy_services.engine.tensorrt_llm.lora import LoadedAdapter
from argosy_services.engine.tensorrt_llm.sampling import sampling_params
from argosy_services.engine.tensorrt_llm.stream import Context, lora_request
from argosy_services.engine.torch_engine.lora.peft_config import invalid


async def warm_up(llm: Any, context: Context, adapter: LoadedAdapter) -> None:
    """Draws one token with an adapter. Raises ADAPTER_INVALID where the library does not take it."""
    library = context.library
    request = Request(f"warm-up-{time.monotonic_ns()}", (0,), max_tokens=1, sampling=Sampling(temperature=0.0))
    try:
        await llm.generate_async(
            {"prompt_token_ids": list(request.prompt)},
            sampling_params=sampling_params(library, request, context.info),
            lora_request=lora_request(library, adapter),
        )
    except (ValueError, TypeError, library.request_error) as error:
        raise invalid(f"TensorRT-LLM does not take the adapter: {error}") from error
