"""The vocabulary of generation: what callers ask for, and what they get."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from argosy_services.engine.base import EngineInfo, Grammar, TokenLogprobs
from argosy_services.tokenization.types import Chat


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, and text that the answer has begun with: it stands after the rendered conversation and is not
    part of what comes back.
    """

    chat: Chat
    prefix: str = ""


Prompt = str | ChatPrompt | tuple[int, ...]
"""A text, which gets the tokenizer's special tokens; a conversation, whose template holds its own; or token ids."""


@dataclass(frozen=True, slots=True)
class Options:
    """How tokens are chosen and when the answer ends; limits and meaning are those of `SamplingParams` in
    generation.proto.

    None stands for unset: a random seed, as many tokens as the context holds, no log-probabilities.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TextChoice:
    """The answer is one of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What to generate. Empty `model` and `adapter` mean the default model and no adapter; an empty fingerprint is not
    checked. `priority` and `cache_salt` are those of `engine.base.Request`.
    """

    prompt: Prompt
    model: str = ""
    adapter: str = ""
    adapter_sticky_key: str = ""
    options: Options = Options()
    form: Grammar | TextChoice | None = None
    tokenizer_fingerprint: str = ""
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answered. Adapter and its version are empty where the base model did."""

    request_id: str
    model: str
    adapter: str = ""
    adapter_version: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call consumed. A prompt counts once, however many choices are made from it; `cached_tokens` are
    those of it that none of the choices computed.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds that a call spent in each stage; the longest of its sequences counts. None: no such stage."""

    tokenization_s: float
    queue_s: float
    prefill_s: float
    decode_s: float | None
    total_s: float


class FinishReason(enum.Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Started:
    """The request was accepted and tokenized."""

    origin: Origin
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """More of one choice. `logprobs` is empty, or has one entry for each of `token_ids`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One choice is complete. At most one of the two stops is set."""

    index: int
    reason: FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are complete; nothing follows."""

    usage: Usage
    timings: StageTimings


Event = Started | Delta | ChoiceFinished | Finished


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finished: ChoiceFinished


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer; `choices` are in the order of their index."""

    origin: Origin
    choices: tuple[Choice, ...]
    usage: Usage
    timings: StageTimings


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A continuation to score after a context, each a text or token ids."""

    context: str | tuple[int, ...]
    continuation: str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """What to score, with which model."""

    items: tuple[ScoreItem, ...]
    model: str = ""
    adapter: str = ""
    tokenizer_fingerprint: str = ""
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one item; `tokens` has one entry for each token of the continuation, `logprob` is their sum."""

    logprob: float
    is_greedy: bool
    tokens: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of all items, in their order."""

    origin: Origin
    scores: tuple[Score, ...]
    usage: Usage
    timings: StageTimings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model; `announces_tools` is set where its chat template has a place for tools."""

    name: str
    engine: EngineInfo
    tokenizer_fingerprint: str
    model_fingerprint: str
    is_default: bool
    announces_tools: bool = False
