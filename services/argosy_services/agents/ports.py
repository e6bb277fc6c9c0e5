"""What agents ask of the fleet: the generation service, and over it a chat model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from argosy_services.generation.types import Event, GenerationSpec, ModelInfo
from argosy_services.tokenization.types import ChatMessage


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model is asked to write next.

    `prefix` is text that the answer starts with already: it is put after the rendered chat and is not part of what
    comes back. With `json_schema` the answer is a JSON value valid under it. `stop` texts end the answer and are left
    out. `deadline` is a time of `time.monotonic()`, `tenant` an opaque name for who asks.
    """

    messages: Sequence[ChatMessage]
    max_tokens: int
    prefix: str = ""
    json_schema: str | None = None
    stop: Sequence[str] = ()
    temperature: float = 0.0
    seed: int | None = None
    model: str = ""
    adapter: str = ""
    deadline: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next text of an answer. The last chunk has `finished`, and the counts of the whole answer."""

    text: str
    finished: bool = False
    stopped_at_length: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class ChatModel(Protocol):
    """Writes answers, a chunk at a time. Closing the iterator early ends the work behind it."""

    def complete(self, completion: Completion) -> AsyncIterator[Chunk]:
        """Raises ArgosyError where the model refuses or fails."""
        ...

    def check_model(self, model: str) -> str:
        """The full name of a model ("" means the default). Raises MODEL_NOT_FOUND."""
        ...


class Generation(Protocol):
    """The generation service: in one process the service itself, on a cluster a handle to it."""

    def stream(
        self, spec: GenerationSpec, *, request_id: str, deadline: float | None = None, tenant: str = ""
    ) -> AsyncGenerator[Event, None]:
        """Generates; the first event is Started, the last one Finished. See `GenerationService.stream`."""
        ...

    def model(self, name: str) -> ModelInfo:
        """One model, the default one for an empty name. Raises MODEL_NOT_FOUND."""
        ...
