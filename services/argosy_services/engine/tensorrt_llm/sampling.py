"""From a request of ours to the library's parameters. The library changes them: each call makes new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from argosy_services.engine.base import EngineInfo, Request
from argosy_services.engine.tensorrt_llm.grammar import guided_decoding
from argosy_services.engine.tensorrt_llm.library import Library

# What the library takes for "no token ends this".
_NO_END = -1


def sampling_params(library: Library, request: Request, info: EngineInfo) -> Any:
    """New SamplingParams for one request.

    End tokens are given by id and nothing else, so the library neither adds the model's own, which a caller may want to
    run past, nor needs text. With a grammar the model's end tokens always count: nothing else may follow its last word.
    """
    stops = set(request.stop_token_ids)
    if request.grammar is not None:
        stops |= info.eos_token_ids
    # The model's own end token where it is among them: only that one obeys min_tokens.
    end = min(stops & info.eos_token_ids, default=_NO_END)
    sampling = request.sampling
    scoring = request.score_from is not None
    # 0 is "off" for the library and "only the drawn token" for us.
    top = None if sampling.logprobs is None else max(1, sampling.logprobs)
    return library.sampling_params(
        end_id=end,
        pad_id=max(end, 0),
        stop_token_ids=sorted(stops - {end}) or None,
        # 0 would be "as many as fit"; the one token that scoring cannot do without is thrown away.
        max_tokens=1 if scoring else request.max_tokens - len(request.generated),
        min_tokens=max(0, request.min_tokens - len(request.generated)) or None,
        logprobs=None if scoring else top,
        prompt_logprobs=(top or 1) if scoring else None,
        guided_decoding=None if request.grammar is None else guided_decoding(library, request.grammar),
        seed=sampling.seed,
        repetition_penalty=_unless(sampling.repetition_penalty, 1.0),
        presence_penalty=_unless(sampling.presence_penalty, 0.0),
        frequency_penalty=_unless(sampling.frequency_penalty, 0.0),
        embedding_bias=_bias(sampling.logit_bias, info.vocabulary_size),
        detokenize=False,
        **_strategy(request),
    )


def _strategy(request: Request) -> dict[str, Any]:
    sampling = request.sampling
    if sampling.temperature == 0:
        return {"top_k": 1}
    # All of them, for with none of the three the library decodes greedily.
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": _unless(sampling.min_p, 0.0),
    }


def _unless(value: float, neutral: float) -> float | None:
    return None if value == neutral else value


def _bias(biases: Mapping[int, float], vocabulary_size: int) -> torch.Tensor | None:
    if not biases:
        return None
    bias = torch.zeros(vocabulary_size, dtype=torch.float32)
    bias[list(biases)] = torch.tensor(list(biases.values()), dtype=torch.float32)
    return bias
