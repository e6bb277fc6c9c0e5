"""The vocabulary of generation engines and the interface that all of them have.

An engine owns a model and one thread that runs it (docs/adr/0005). Requests come in from any thread; after each step
the engine hands everything new to one callback, on its own thread. Token ids go in and come out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from argosy_services.errors import ArgosyError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from logits. Values are valid: whoever makes one has checked them.

    `temperature` 0 is greedy. `logprobs` is how many of the most likely tokens are reported beside the drawn one; None
    reports nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None


class GrammarKind(enum.Enum):
    """In which language a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """The form that an answer must have."""

    kind: GrammarKind
    source: str


LOWEST_PRIORITY = -2
HIGHEST_PRIORITY = 2
"""Between these is a request's priority; 0 is that of those which say nothing."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to run.

    `stop_token_ids` end the sequence; the model's own end tokens are among them unless the caller ignores those.
    `adapter` is the key under which the adapter was loaded. With `score_from` set nothing is generated: the
    log-probabilities of the prompt's tokens from that position on are returned, and `max_tokens` is 0.

    `generated` are tokens of the answer that another engine drew before this one took over. They count against
    `max_tokens` and `min_tokens` and are not handed out again; what follows is what would have followed there.

    `tenant` is an opaque name for who asks. Where there is not room for all, requests of higher `priority` go first,
    and among equals tenants get equal shares. Sequences of one `call` are no rivals: where one of it is in, the others
    are let in. `timeout_s` seconds after it was submitted nobody waits for it any more: a span and not a time, because
    processes of a cluster have different clocks.
    """

    id: str
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    adapter: str | None = None
    grammar: Grammar | None = None
    score_from: int | None = None
    generated: Sequence[int] = ()
    tenant: str = ""
    priority: int = 0
    cache_salt: str = ""
    call: str = ""
    timeout_s: float | None = None

    @property
    def namespace(self) -> str:
        """Computed beginnings of prompts are shared by the requests for which this is the same, and by no others.

        Two of its three parts have their lengths before them: no choice of a salt makes one namespace look like
        another.
        """
        adapter = self.adapter or ""
        return f"{len(adapter)}:{adapter}{len(self.tenant)}:{self.tenant}{self.cache_salt}"


class Finish(enum.Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural logarithm, of the model's own distribution) at one position.

    `top` holds (token id, log-probability) pairs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Ahead:
    """Sequences in an engine that went before another one when it came, running or waiting: those of its own tenant,
    those of others, and of both together those of a higher priority. `waiting_tokens` are those of their prompts that
    waited.
    """

    own: int = 0
    others: int = 0
    higher_priority: int = 0
    waiting_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a sequence spent: waiting for a place, until its first token, from there to its last.

    `grammar_s` of `queue_s` its grammar was compiled. `preempted_s` are the times, in seconds since its arrival, at
    which it lost its place to others, `requeued_s` how long it was without one in all. `ahead` says who was there
    before it, `short_of` what kept it from its place once its turn had come: "places" in the batch, or "blocks".
    `adapter_s` were before its arrival, where the engine's process had to bring its adapter.
    """

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    grammar_s: float = 0.0
    preempted_s: tuple[float, ...] = ()
    requeued_s: float = 0.0
    adapter_s: float = 0.0
    ahead: Ahead | None = None
    short_of: str = ""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step brought for one request.

    `logprobs` has one entry for each of `token_ids` where they were asked for, and one for each scored token of a
    scoring request. `timings` come with the first token and, complete, with the last. With `finish` set nothing
    follows; `error` is set where it is FAILED.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None
    cached_tokens: int = 0
    timings: Timings | None = None
    error: ArgosyError | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves; fixed once it is made."""

    engine: str
    architecture: str
    dtype: str
    device: str
    parameter_count: int
    max_context_tokens: int
    vocabulary_size: int
    eos_token_ids: frozenset[int]
    max_adapters: int
    max_adapter_rank: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A picture of an engine between two steps; its adapters are named by their keys. One that is not `ready` takes no
    sequences now, but will again if it is healthy.
    """

    running: int
    waiting: int
    waiting_tokens: int
    kv_blocks_in_use: int
    kv_blocks_total: int
    adapters: int
    steps: int
    preemptions: int
    running_adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
    ready: bool = True


class AdapterWeights(Protocol):
    """A validated adapter, ready to be put into an engine.

    `version` is the SHA-256 over its files in hexadecimal, `size_bytes` what it takes in the engine.
    """

    @property
    def version(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def target_modules(self) -> tuple[str, ...]: ...
    @property
    def size_bytes(self) -> int: ...


StepCallback = Callable[[list[StepOutput]], None]


class SequenceRunner(Protocol):
    """Runs sequences. Every method may be called from any thread."""

    @property
    def info(self) -> EngineInfo: ...

    def start(self, on_step: StepCallback) -> None:
        """Starts the work. `on_step` is called once a step, on whichever thread does the work; it must be fast and must
        not raise.
        """
        ...

    def close(self) -> None:
        """Stops the work; sequences that still run end with FAILED (DRAINING)."""
        ...

    def submit(self, request: Request) -> None:
        """Takes a sequence. Raises QUEUE_FULL, KV_CACHE_FULL, ADAPTER_NOT_FOUND or ENGINE_FAILED. A sequence whose
        `timeout_s` is over while it waits ends with FAILED (DEADLINE_EXCEEDED).
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Frees a sequence before the next step; no output follows. Unknown ids are ignored."""
        ...

    def check_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar. Raises INVALID_GRAMMAR. Takes milliseconds: not for an event loop's thread."""
        ...


class AdapterHost(Protocol):
    """Takes adapters in and out. Every method may be called from any thread."""

    def read_adapter(self, directory: Path) -> AdapterWeights:
        """Reads and validates a PEFT adapter. Raises ADAPTER_INVALID or WRONG_BASE_MODEL. Blocks on disk."""
        ...

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """Puts an adapter into a slot between two steps. Once the future is done, whatever is submitted finds it; the
        future raises ADAPTER_SLOTS_FULL.
        """
        ...

    def unload_adapter(self, key: str) -> Future[None]:
        """Frees an adapter's slot between two steps. Sequences that still use it end with FAILED
        (ADAPTER_NOT_READY).
        """
        ...


class Engine(SequenceRunner, AdapterHost, Protocol):
    """Owns a model and one thread that runs it. The limits of what may wait can be changed at any time."""

    max_waiting: int
    max_waiting_tokens: int

    @property
    def healthy(self) -> bool:
        """Whether it takes sequences, or will (again) without help from outside: False is for good. A sequence that
        ends with ENGINE_FAILED says nothing about those to come.
        """
        ...

    def stats(self) -> EngineStats:
        """The picture after the last step."""
        ...
