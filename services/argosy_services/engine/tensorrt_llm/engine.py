"""TensorRT-LLM as the rest of the fleet sees it: an `Engine` whose methods may be called from any thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from argosy_services.engine.base import (
    AdapterWeights,
    EngineInfo,
    EngineStats,
    Grammar,
    Request,
    StepCallback,
    StepOutput,
)
from argosy_services.engine.door import Limits
from argosy_services.engine.failures import not_running
from argosy_services.engine.tensorrt_llm import device, options
from argosy_services.engine.tensorrt_llm.checkpoint import Checkpoint, read_checkpoint
from argosy_services.engine.tensorrt_llm.grammar import GrammarCheck, require_supported
from argosy_services.engine.tensorrt_llm.library import Library, load_library
from argosy_services.engine.tensorrt_llm.locate import Wanted, find_engine
from argosy_services.engine.tensorrt_llm.loop import EngineThread
from argosy_services.engine.tensorrt_llm.lora import AdapterIds, read_adapter
from argosy_services.engine.tensorrt_llm.manifest import EngineManifest
from argosy_services.engine.tensorrt_llm.restart import Restarts
from argosy_services.engine.tensorrt_llm.stream import Context
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings


class TensorRtEngine:
    """The library's own batching on one thread of ours; see `engine.base.Engine` for the methods."""

    def __init__(
        self,
        model: LocalModel,
        settings: GenerationSettings,
        checkpoint: Checkpoint,
        library: Library,
        *,
        manifest: EngineManifest | None,
        tokenizer_json: str,
    ) -> None:
        self.info = _info(settings, checkpoint, manifest)
        self._model = model
        self._settings = settings
        self.max_waiting = settings.max_waiting
        self.max_waiting_tokens = settings.max_waiting_tokens
        self._checkpoint = checkpoint
        self._library = library
        self._manifest = manifest
        self._grammars = GrammarCheck(tokenizer_json, self.info.vocabulary_size, self.info.eos_token_ids)
        self._llm: Any = None
        self._make: Callable[[], Any] | None = None
        self._thread: EngineThread | None = None

    @classmethod
    def load(cls, model: LocalModel, settings: GenerationSettings, tokenizer_json: str) -> TensorRtEngine:
        """Makes the library's LLM. Blocks for minutes. Raises LibraryError, EngineMismatchError, DamagedEngineError."""
        library = load_library()
        directory: Path | None = None
        manifest: EngineManifest | None = None
        if settings.tensorrt_llm.mode == "compiled":
            wanted = Wanted.of(model, settings, device.architecture(), library.version)
            directory, manifest = find_engine(wanted, settings.tensorrt_llm.engine_dir)
        engine = cls(
            model, settings, read_checkpoint(model.path), library, manifest=manifest, tokenizer_json=tokenizer_json
        )
        engine.open(directory)
        return engine

    def open(self, directory: Path | None) -> None:
        """Makes the LLM, from a compiled engine where there is one. Blocks."""
        logprobs = self._manifest is not None and self._manifest.build.logprobs

        def make() -> Any:
            return options.make_llm(
                self._library, self._settings, self.info, self._model.path, engine=directory, logprobs=logprobs
            )

        self._make = make
        self._llm = make()

    @property
    def healthy(self) -> bool:
        """Whether the library lives, or is being started again."""
        return self._thread is None or self._thread.healthy

    def start(self, on_step: StepCallback) -> None:
        """Starts the engine's thread; once."""
        if self._thread is not None:
            raise RuntimeError("the engine was started already")
        if self._llm is None or self._make is None:
            raise RuntimeError("the engine has not been loaded")
        own = self._settings.tensorrt_llm
        context = Context(self._model.name, self._library, self.info, self._manifest is not None, emit=_nowhere)
        self._thread = EngineThread(
            context,
            self._llm,
            Restarts(self._make, attempts=own.max_restarts, delay_s=own.restart_delay_s),
            AdapterIds(self._settings.max_adapters, own.max_adapter_versions),
            on_step,
        )
        self._llm = None
        self._thread.start()

    def close(self) -> None:
        """Stops the thread and the library, and waits for both."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.stop()
        elif self._llm is not None:
            self._llm.shutdown()
            self._llm = None

    def submit(self, request: Request) -> None:
        """Refuses at the door what can never run, what this engine cannot do, and what would wait too long."""
        thread = self._running()
        self._check_size(request)
        self._check_abilities(request)
        thread.offer(request, Limits(self._settings.max_batch + self.max_waiting, self.max_waiting_tokens))

    def cancel(self, request_id: str) -> None:
        """Has the library abort a sequence."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.cancel(request_id)

    def check_grammar(self, grammar: Grammar) -> None:
        """Refuses what the library would only refuse while it runs."""
        self._grammars.check(grammar)

    def read_adapter(self, directory: Path) -> AdapterWeights:
        """Reads and validates a PEFT adapter for this model. Its directory must stay until it is unloaded."""
        return read_adapter(
            directory,
            shapes=self._checkpoint.adaptable,
            max_rank=self.info.max_adapter_rank,
            base_model=self._model.name,
            tensor_parallel_size=self._settings.tensorrt_llm.tensor_parallel_size,
        )

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """Has the library read an adapter, under an id that stands for its version alone."""
        return self._running().load_adapter(key, weights)

    def unload_adapter(self, key: str) -> Future[None]:
        """Has no request use an adapter any more. The library keeps its memory until it is restarted."""
        return self._running().unload_adapter(key)

    def stats(self) -> EngineStats:
        """The library's latest picture, also of an engine that has ended."""
        if self._thread is None:
            raise not_running()
        return self._thread.stats

    def _running(self) -> EngineThread:
        thread = self._thread
        if thread is None or not thread.is_alive():
            raise not_running() from (thread.fault if thread is not None else None)
        return thread

    def _check_size(self, request: Request) -> None:
        tokens, limit = len(request.prompt) + request.max_tokens, self.info.max_context_tokens
        if tokens > limit:
            raise _too_large("prompt and answer need", tokens, limit)
        if self._manifest is not None and len(request.prompt) > self._manifest.build.max_input_len:
            raise _too_large("the prompt has", len(request.prompt), self._manifest.build.max_input_len)

    def _check_abilities(self, request: Request) -> None:
        if request.generated and (request.grammar is not None or request.sampling.temperature > 0):
            # The library draws by its own steps, and its grammars begin with the first token.
            raise ArgosyError(
                Reason.NOT_SUPPORTED,
                "its engine is gone, and on another one only greedy answers without a form go on; retry",
            )
        if request.grammar is not None:
            require_supported(request.grammar)
        asked = request.sampling.logprobs is not None or request.score_from is not None
        if asked and self._manifest is not None and not self._manifest.build.logprobs:
            raise ArgosyError(
                Reason.NOT_SUPPORTED,
                "this engine was compiled without log-probabilities; compile it with `argosy compile --logprobs`",
            )


def _info(settings: GenerationSettings, checkpoint: Checkpoint, manifest: EngineManifest | None) -> EngineInfo:
    limits = [checkpoint.max_positions, settings.max_context_tokens or checkpoint.max_positions]
    if manifest is not None:
        limits.append(manifest.build.max_seq_len)
    return EngineInfo(
        engine="tensorrt_llm",
        architecture=checkpoint.architecture,
        dtype=(manifest.build.quantization if manifest and manifest.build.quantization != "none" else None)
        or (checkpoint.dtype if settings.dtype == "auto" else settings.dtype),
        device="cuda",
        parameter_count=checkpoint.parameter_count,
        max_context_tokens=min(limits),
        vocabulary_size=checkpoint.vocabulary_size,
        eos_token_ids=checkpoint.eos_token_ids,
        max_adapters=settings.max_adapters,
        max_adapter_rank=settings.max_adapter_rank,
    )


def _too_large(what: str, tokens: int, limit: int) -> ArgosyError:
    return ArgosyError(
        Reason.KV_CACHE_FULL,
        f"{what} {tokens} tokens, the engine takes {limit}; ask for fewer tokens",
        limit=limit,
        value=tokens,
    )


def _nowhere(_output: StepOutput) -> None:
    """The thread puts its own in this place."""
