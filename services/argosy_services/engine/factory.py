"""Makes the engine that fits a model and a machine; callers never import an implementation."""

from __future__ import annotations

from typing import Protocol

from argosy_services.engine.base import Engine
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings


class EngineFactory(Protocol):
    """See `create_engine`."""

    def __call__(
        self, model: LocalModel, settings: GenerationSettings, tokenizer_json: str, draft: LocalModel | None = None
    ) -> Engine: ...


def create_engine(
    model: LocalModel, settings: GenerationSettings, tokenizer_json: str, draft: LocalModel | None = None
) -> Engine:
    """Loads a model into an engine that is ready to be started. Blocks for seconds, or minutes with TensorRT-LLM; for
    any thread.

    `tokenizer_json` is the text of the model's tokenizer.json, of which grammars need the bytes of every token; `draft`
    is a smaller model with the same tokenizer that guesses tokens ahead. Raises
    UnsupportedModelError for a checkpoint that the engine cannot serve, and TensorRtLlmError where that library, a
    compiled engine, and this machine do not fit.
    """
    if settings.engine == "tensorrt_llm":
        from argosy_services.engine.tensorrt_llm.engine import TensorRtEngine

        return TensorRtEngine.load(model, settings, tokenizer_json)
    from argosy_services.engine.torch_engine.engine import TorchEngine

    return TorchEngine.load(model, settings, tokenizer_json, draft)
