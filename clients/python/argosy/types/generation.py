"""Generated and scored text."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

from argosy.types.common import Origin, Timings, Tool, Usage


class FinishReason(enum.StrEnum):
    """Why a choice ended. UNKNOWN stands for a reason that this version of the SDK does not know."""

    UNKNOWN = "unknown"
    STOP = "stop"
    LENGTH = "length"


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen and when the answer ends; ranges and defaults are those of `SamplingParams`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    max_tokens: int
    min_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    n: int
    logprobs: int


class GenerateOptions(SamplingOptions, total=False):
    """What `generate` and `stream` take beside the prompt. At most one of the last four gives the answer's form.

    `priority` (-2 to 2) goes before everything else where there is not room for all; above 0 it needs a key that may
    raise it. Calls with different `cache_salt` share no computed beginnings of prompts.
    """

    model: str
    adapter: str
    adapter_sticky_key: str
    tools: Sequence[Tool]
    tokenizer_fingerprint: str
    priority: int
    cache_salt: str
    json_schema: str | Mapping[str, Any]
    regex: str
    lark: str
    choice: Sequence[str]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the natural logarithm of its probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the drawn token, and the most likely ones, likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `logprobs` has an entry for each of `token_ids` where they were asked for."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer: `n` choices, ordered by index."""

    choices: tuple[Choice, ...]
    origin: Origin
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    def json(self) -> Any:
        """The first choice's text, parsed. Raises ValueError where it is not JSON, as when `max_tokens` cut it."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Started:
    """Event: the request was accepted and tokenized."""

    origin: Origin
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Event: more text of one choice; whole characters, sometimes none."""

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """Event: one choice is complete."""

    index: int
    finish_reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: all choices are complete. Comes once, last."""

    usage: Usage
    timings: Timings


TextEvent: TypeAlias = Started | Delta | ChoiceFinished | Finished


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one continuation: the sum of its log-probabilities, and each token's."""

    logprob: float
    is_greedy: bool
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Scoring:
    """One score for each item, in the order of the request."""

    scores: tuple[Score, ...]
    origin: Origin
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Model:
    """A served language model."""

    name: str
    architecture: str
    engine: str
    dtype: str
    device: str
    parameter_count: int
    max_context_tokens: int
    vocabulary_size: int
    tokenizer_fingerprint: str
    model_fingerprint: str
    max_adapters: int
    max_adapter_rank: int
    is_default: bool
