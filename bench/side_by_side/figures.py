"""Figures out of the times at which tokens came."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from side_by_side.base import Request, TokenTimes

Figures: TypeAlias = Mapping[str, float]


def figures(requests: Sequence[Request], times: TokenTimes) -> Figures:
    """Rates in tokens per second over all streams, and seconds to the first token:

    - `decode`: while every stream decodes, from the last one's first token to the first one's last token; absent where
      no such time was
    - `first_to_last`: answers without their first tokens, from the first token of all to the last
    - `end_to_end`: answers, from the call to the last token
    - `prefill`: prompts, from the call to the last stream's first token
    - `seconds`: the whole load
    - `first_token_s`, `first_token_p95_s`: from the call, median and 95th percentile over the streams
    """
    firsts = sorted(stream[0] for stream in times)
    end = max(stream[-1] for stream in times)
    answers = sum(map(len, times))
    found = {
        "seconds": end,
        "end_to_end": answers / end,
        "prefill": sum(len(request.prompt) for request in requests) / firsts[-1],
        "first_token_s": statistics.median(firsts),
        "first_token_p95_s": firsts[round(0.95 * (len(firsts) - 1))],
    }
    if answers > len(times):
        found["first_to_last"] = (answers - len(times)) / (end - firsts[0])
    over = min(stream[-1] for stream in times)
    if over > firsts[-1]:
        tokens = sum(_tokens_at(stream, over) - _tokens_at(stream, firsts[-1]) for stream in times)
        found["decode"] = tokens / (over - firsts[-1])
    return found


def _tokens_at(stream: Sequence[float], moment: float) -> float:
    """Tokens that have come, those of the next message in proportion: a step's tokens arrive one after another, several
    steps' together, and whole ones would count more or less of them by their order.
    """
    came = bisect_right(stream, moment)
    if came in (0, len(stream)):
        return came
    before, after = stream[came - 1], stream[came]
    return came + (bisect_right(stream, after) - came) * (moment - before) / (after - before)
