"""Log-probabilities of given continuations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from argosy_services.engine.base import EngineInfo, Request, Sampling, TokenLogprobs
from argosy_services.errors import invalid_field
from argosy_services.generation.bridge import Run
from argosy_services.generation.options import check_ids
from argosy_services.generation.prompt import MAX_TEXT_BYTES, check_context, off_loop
from argosy_services.generation.types import Score, ScoreItem
from argosy_services.rpc import validate
from argosy_services.tokenization.backend import Tokenizer

MAX_ITEMS = 256
# So many items are in the engine at once: enough to fill its steps, few enough to leave its queue to others.
_WINDOW = 32


async def sequences(
    items: Sequence[ScoreItem], tokenizer: Tokenizer, info: EngineInfo
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each item's context and continuation, both not empty and together within the model's context.

    Raises TOO_MANY_INPUTS, INVALID_FIELD, INPUT_TOO_LARGE or PROMPT_TOO_LONG.
    """
    validate.count("items", len(items), limit=MAX_ITEMS)
    parts = [(f"items[{at}].context", item.context) for at, item in enumerate(items)]
    parts += [(f"items[{at}].continuation", item.continuation) for at, item in enumerate(items)]
    for field, part in parts:
        if isinstance(part, str):
            validate.text_size(field, part, limit_bytes=MAX_TEXT_BYTES)
        else:
            check_context(field, len(part), info)
            check_ids(field, part, info)
    characters = sum(len(part) for _, part in parts if isinstance(part, str))
    ids = await off_loop(characters, lambda: _encode(items, tokenizer))
    for at, (context, continuation) in enumerate(ids):
        for name, part in (("context", context), ("continuation", continuation)):
            if not part:
                raise invalid_field(f"items[{at}].{name}", "must not be empty", limit="at least 1 token", value=0)
        check_context(f"items[{at}]", len(context) + len(continuation), info)
    return ids


async def run_all(run: Run, requests: Sequence[Request]) -> list[Score]:
    """Scores all sequences, some at a time, and gives their scores in the order of `requests`."""
    waiting = deque(requests)
    found: dict[str, list[TokenLogprobs]] = {request.id: [] for request in requests}
    running = 0
    while waiting or running:
        while waiting and running < _WINDOW:
            run.submit(waiting.popleft())
            running += 1
        for output in await run.next():
            found[output.request_id] += output.logprobs
            running -= output.finish is not None
    return [_score(found[request.id]) for request in requests]


def request(request_id: str, context: list[int], continuation: list[int], adapter: str | None) -> Request:
    """A sequence that is read and not continued. Its likeliest tokens tell what greedy decoding does."""
    return Request(
        id=request_id,
        prompt=context + continuation,
        max_tokens=0,
        sampling=Sampling(temperature=0.0, logprobs=1),
        adapter=adapter,
        score_from=len(context),
    )


def _encode(items: Sequence[ScoreItem], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    return [
        (
            tokenizer.encode(item.context) if isinstance(item.context, str) else list(item.context),
            tokenizer.encode(item.continuation, add_special_tokens=False)
            if isinstance(item.continuation, str)
            else list(item.continuation),
        )
        for item in items
    ]


def _score(tokens: list[TokenLogprobs]) -> Score:
    return Score(
        logprob=math.fsum(token.logprob for token in tokens),
        is_greedy=all(token.top[0][0] == token.token_id for token in tokens),
        tokens=tuple(tokens),
    )
