"""What agents ask for, made of the services of the same process."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import numpy as np
from numpy.typing import NDArray

from argosy_services.agents.ports import Chunk, Completion, Generation
from argosy_services.embeddings.service import EmbeddingsService
from argosy_services.generation.types import (
    ChatPrompt,
    ChoiceFinished,
    Delta,
    Finished,
    FinishReason,
    GenerationSpec,
    Options,
    Started,
)
from argosy_services.tokenization.types import Chat


class LocalChatModel:
    """A `ChatModel` over the generation service, which is asked with `priority`."""

    def __init__(self, service: Generation, priority: int = 0) -> None:
        self._service = service
        self._priority = priority

    async def complete(self, completion: Completion) -> AsyncIterator[Chunk]:
        """Writes an answer; see `ChatModel`. Raises what `GenerationService.stream` raises."""
        stopped_at_length = False
        events = self._service.stream(
            _spec(completion, self._priority),
            request_id=f"agent-{uuid.uuid4().hex}",
            deadline=completion.deadline,
            tenant=completion.tenant,
        )
        async with aclosing(events):
            async for event in events:
                match event:
                    case Started():
                        pass
                    case Delta():
                        if event.text:
                            yield Chunk(event.text)
                    case ChoiceFinished():
                        stopped_at_length = event.reason is FinishReason.LENGTH
                    case Finished():
                        yield Chunk(
                            "",
                            finished=True,
                            stopped_at_length=stopped_at_length,
                            prompt_tokens=event.usage.prompt_tokens,
                            cached_tokens=event.usage.cached_tokens,
                            completion_tokens=event.usage.completion_tokens,
                        )

    def check_model(self, model: str) -> str:
        """The full name of a model. Raises MODEL_NOT_FOUND."""
        return self._service.model(model).name

    def announces_tools(self, model: str) -> bool:
        """Whether the chat template of a model has a place for tools. Raises MODEL_NOT_FOUND."""
        return self._service.model(model).announces_tools


class LocalEmbedder:
    """An `Embedder` over the embeddings service."""

    def __init__(self, service: EmbeddingsService) -> None:
        self._service = service

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1 of the default model. Raises what `EmbeddingsService.embed` raises."""
        return (await self._service.embed(texts, normalize=True)).vectors


def _spec(completion: Completion, priority: int) -> GenerationSpec:
    return GenerationSpec(
        prompt=ChatPrompt(Chat(completion.messages, completion.tools), prefix=completion.prefix),
        model=completion.model,
        adapter=completion.adapter,
        options=Options(
            temperature=completion.temperature,
            seed=completion.seed,
            max_tokens=completion.max_tokens,
            stop=tuple(completion.stop),
        ),
        form=completion.form,
        priority=priority,
    )
