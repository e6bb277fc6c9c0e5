"""Checks of a request's options and their translation into the engine's vocabulary.

Every limit of `SamplingParams`, and of priority and salt, in generation.proto is checked here and nowhere else.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from argosy_services.engine.base import HIGHEST_PRIORITY, LOWEST_PRIORITY, EngineInfo, Sampling
from argosy_services.errors import ArgosyError, invalid_field
from argosy_services.generation.types import Options
from argosy_services.rpc.validate import number, text_size

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_SALT_BYTES = 256

_FIELD = "spec.sampling"
_SEEDS = 1 << 64
_UINT32_MAX = (1 << 32) - 1
# Dividing float32 logits by less overflows; the draw is greedy long before.
_SMALLEST_TEMPERATURE = 1e-6


def check(options: Options, info: EngineInfo) -> None:
    """Raises INVALID_FIELD unless every option is within its limits."""
    _check_numbers(options)
    _check_stops(options.stop)
    _check_length(f"{_FIELD}.stop_token_ids", len(options.stop_token_ids), limit=MAX_STOP_TOKENS)
    check_ids(f"{_FIELD}.stop_token_ids", options.stop_token_ids, info)
    _check_length(f"{_FIELD}.logit_bias", len(options.logit_bias), limit=MAX_BIASES)
    check_ids(f"{_FIELD}.logit_bias", tuple(options.logit_bias), info)
    for token_id, bias in options.logit_bias.items():
        number(f"{_FIELD}.logit_bias[{token_id}]", bias, low=-100, high=100)
    if options.max_tokens is not None and options.min_tokens > options.max_tokens:
        raise min_tokens_too_large(options.min_tokens, options.max_tokens)


def check_standing(message: str, priority: int, cache_salt: str) -> None:
    """Raises INVALID_FIELD or INPUT_TOO_LARGE unless priority and salt, which are fields of `message`, are within their
    limits.
    """
    number(f"{message}priority", priority, low=LOWEST_PRIORITY, high=HIGHEST_PRIORITY)
    text_size(f"{message}cache_salt", cache_salt, limit_bytes=MAX_SALT_BYTES)


def check_ids(field: str, ids: Sequence[int], info: EngineInfo) -> None:
    """Raises INVALID_FIELD unless every id is a token of the model."""
    if ids and not (min(ids) >= 0 and max(ids) < info.vocabulary_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < info.vocabulary_size)
        raise invalid_field(
            field, "holds an id that the model does not have", limit=f"0 to {info.vocabulary_size - 1}", value=wrong
        )


def min_tokens_too_large(min_tokens: int, max_tokens: int) -> ArgosyError:
    """More tokens are demanded than allowed."""
    return invalid_field(
        f"{_FIELD}.min_tokens", "must not be above max_tokens", limit=f"at most {max_tokens}", value=min_tokens
    )


def samplings(options: Options, info: EngineInfo) -> list[Sampling]:
    """How each of the `n` choices is drawn: alike but for the seed."""
    seed = secrets.randbits(64) if options.seed is None else options.seed
    return [
        Sampling(
            temperature=0.0 if options.temperature < _SMALLEST_TEMPERATURE else options.temperature,
            top_k=0 if options.top_k >= info.vocabulary_size else options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=options.logit_bias,
            seed=(seed + index) % _SEEDS,
            logprobs=options.logprobs,
        )
        for index in range(options.n)
    ]


def stop_token_ids(options: Options, info: EngineInfo) -> frozenset[int]:
    """The tokens that end an answer."""
    own = frozenset(options.stop_token_ids)
    return own if options.ignore_eos else own | info.eos_token_ids


def _check_numbers(options: Options) -> None:
    number(f"{_FIELD}.temperature", options.temperature, low=0, high=100)
    number(f"{_FIELD}.top_k", options.top_k, low=0, high=_UINT32_MAX)
    number(f"{_FIELD}.top_p", options.top_p, low=0, high=1, above_low=True)
    number(f"{_FIELD}.min_p", options.min_p, low=0, high=1)
    number(f"{_FIELD}.repetition_penalty", options.repetition_penalty, low=0, high=100, above_low=True)
    number(f"{_FIELD}.presence_penalty", options.presence_penalty, low=-2, high=2)
    number(f"{_FIELD}.frequency_penalty", options.frequency_penalty, low=-2, high=2)
    number(f"{_FIELD}.n", options.n, low=1, high=MAX_CHOICES)
    number(f"{_FIELD}.min_tokens", options.min_tokens, low=0, high=_UINT32_MAX)
    if options.max_tokens is not None:
        number(f"{_FIELD}.max_tokens", options.max_tokens, low=1, high=_UINT32_MAX)
    if options.logprobs is not None:
        number(f"{_FIELD}.logprobs", options.logprobs, low=0, high=MAX_LOGPROBS)
    if options.seed is not None and not 0 <= options.seed < _SEEDS:
        raise invalid_field(f"{_FIELD}.seed", "must fit 64 bits", limit="0 to 2^64 - 1", value=options.seed)


def _check_stops(stops: Sequence[str]) -> None:
    _check_length(f"{_FIELD}.stop", len(stops), limit=MAX_STOPS)
    for position, stop in enumerate(stops):
        size = len(stop.encode())
        if not 1 <= size <= MAX_STOP_BYTES:
            raise invalid_field(
                f"{_FIELD}.stop[{position}]",
                "must have 1 to 256 bytes of UTF-8",
                limit=f"1 to {MAX_STOP_BYTES}",
                value=size,
            )


def _check_length(field: str, given: int, *, limit: int) -> None:
    if given > limit:
        raise invalid_field(field, "has too many entries", limit=limit, value=given)
