"""What the span of a generation says about it, in the words of OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

from collections.abc import Iterable

from argosy_services.generation.answer import ChoiceWriter
from argosy_services.generation.types import ChatPrompt, GenerationSpec, Usage
from argosy_services.tracing import Attributes


def described(spec: GenerationSpec, model: str, usage: Usage, writers: Iterable[ChoiceWriter]) -> Attributes:
    """Attributes of a finished generation by `model`: numbers and names, no text of it."""
    options = spec.options
    found: dict[str, str | bool | int | float | list[str]] = {
        "gen_ai.operation.name": "chat" if isinstance(spec.prompt, ChatPrompt) else "text_completion",
        "gen_ai.provider.name": "argosy",
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [writer.finished.reason.value for writer in writers if writer.finished],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.output.type": "text" if spec.form is None else "json",
    }
    if spec.model:
        found["gen_ai.request.model"] = spec.model
    if options.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = options.max_tokens
    if spec.adapter:
        found["argosy.adapter"] = spec.adapter
    return found
