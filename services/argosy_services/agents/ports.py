"""What agents ask of the fleet: the generation service, and over it a chat model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from argosy_services.engine.base import Grammar
from argosy_services.generation.types import Event, GenerationSpec, ModelInfo
from argosy_services.tokenization.types import ChatMessage
from argosy_services.tokenization.types import Tool as ToolSchema


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model is asked to write next.

    `prefix` is text that the answer starts with already: it is put after the rendered chat and is not part of what
    comes back. With `form` the answer has that form; the model's chat template announces `tools`. `stop` texts end the
    answer and are left out. `deadline` is a time of `time.monotonic()`, `tenant` an opaque name for who asks.
    """

    messages: Sequence[ChatMessage]
    max_tokens: int
    prefix: str = ""
    form: Grammar | None = None
    tools: Sequence[ToolSchema] = ()
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

    def announces_tools(self, model: str) -> bool:
        """Whether the chat template of a model has a place for tools. Raises MODEL_NOT_FOUND."""
        ...


class Embedder(Protocol):
    """Turns texts into vectors of length 1."""

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [texts, dimensions]. Raises what the embeddings service raises."""
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
