"""The torch engine as the rest of the fleet sees it: an `Engine` whose methods may be called from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from argosy_services.engine.base import (
    AdapterWeights,
    EngineInfo,
    EngineStats,
    Grammar,
    Request,
    StepCallback,
)
from argosy_services.engine.door import Limits
from argosy_services.engine.failures import not_running
from argosy_services.engine.torch_engine.architectures import read_config
from argosy_services.engine.torch_engine.grammar import GrammarCompiler
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.loop import EngineLoop, Parts
from argosy_services.engine.torch_engine.lora.reader import read_peft_adapter
from argosy_services.engine.torch_engine.lora.slots import Promises
from argosy_services.engine.torch_engine.masks import MaskMaker
from argosy_services.engine.torch_engine.models.modules import adaptable
from argosy_services.engine.torch_engine.runners import Loaded, cores, load_runner
from argosy_services.engine.torch_engine.sampler import Sampler
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.engine.torch_engine.speculation.draft_model import DraftModel
from argosy_services.engine.torch_engine.speculation.speculator import Speculator
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings


@dataclass(frozen=True, slots=True)
class Draft:
    """A model that guesses tokens, how long the sequences are at most that it takes, and how many tokens it knows."""

    loaded: Loaded
    context: int
    vocabulary_size: int


class TorchEngine:
    """Continuous batching over a paged cache on one thread; see `engine.base.Engine` for the methods."""

    def __init__(
        self,
        model: LocalModel,
        settings: GenerationSettings,
        loaded: Loaded,
        *,
        draft: Draft | None,
        shapes: Mapping[str, tuple[int, int]],
        info: EngineInfo,
        grammars: GrammarCompiler,
    ) -> None:
        self.info = info
        self._model = model
        self._settings = settings
        self.max_waiting = settings.max_waiting
        self.max_waiting_tokens = settings.max_waiting_tokens
        self._loaded = loaded
        self._draft = draft
        self._shapes = shapes
        self._grammars = grammars
        self._promises = Promises(settings.max_adapters)
        self._loop: EngineLoop | None = None

    @classmethod
    def load(
        cls, model: LocalModel, settings: GenerationSettings, tokenizer_json: str, draft: LocalModel | None = None
    ) -> TorchEngine:
        """Reads a checkpoint, and that of a draft model. Raises UnsupportedModelError."""
        config = read_config(model.path)
        grammars = GrammarCompiler(tokenizer_json, config.vocab_size, config.eos_token_ids)
        limits = (settings.max_context_tokens or config.max_positions, config.max_positions, _cache_tokens(settings))
        context = min(limits)
        # Where guesses are made in any case, the next step is theirs.
        ahead = settings.speculation in {"off", "auto"}
        loaded = load_runner(model.path, config, settings, context, ahead=ahead)
        info = EngineInfo(
            engine="torch",
            architecture=config.architecture,
            dtype=loaded.weights,
            device=settings.device,
            parameter_count=loaded.parameter_count,
            max_context_tokens=context,
            vocabulary_size=config.vocab_size,
            eos_token_ids=config.eos_token_ids,
            max_adapters=settings.max_adapters,
            max_adapter_rank=settings.max_adapter_rank,
        )
        return cls(
            model,
            settings,
            loaded,
            draft=None if draft is None else _load_draft(draft, settings, context),
            shapes=adaptable(config),
            info=info,
            grammars=grammars,
        )

    @property
    def healthy(self) -> bool:
        """Whether its thread has not ended: a fault there ends the engine."""
        return self._loop is None or (self._loop.is_alive() and self._loop.fault is None)

    def start(self, on_step: StepCallback) -> None:
        """Starts the engine's thread; once."""
        if self._loop is not None:
            raise RuntimeError("the engine was started already")
        self._loop = EngineLoop(self._parts(), on_step)
        self._loop.start()

    def close(self) -> None:
        """Stops the threads and waits for them."""
        if self._loop is not None and self._loop.is_alive():
            self._loop.stop()
        self._grammars.close()
        self._loaded.runner.close()
        if self._draft is not None:
            self._draft.loaded.runner.close()

    def submit(self, request: Request) -> None:
        """Refuses at the door what can never run or would wait too long."""
        loop, stats = self._running(), self.stats()
        tokens = len(request.prompt) + request.max_tokens
        capacity = stats.kv_blocks_total * self._settings.block_tokens
        if tokens > capacity:
            raise ArgosyError(
                Reason.KV_CACHE_FULL,
                f"prompt and answer need {tokens} tokens of cache, the engine has {capacity}; ask for fewer tokens",
                limit=capacity,
                value=tokens,
            )
        loop.offer(request, Limits(self._settings.max_batch + self.max_waiting, self.max_waiting_tokens))

    def cancel(self, request_id: str) -> None:
        """Frees a sequence before the next step."""
        asked = time.monotonic()
        loop = self._loop
        if loop is not None and loop.is_alive():
            with suppress(ArgosyError):  # An engine that ended in between has freed everything.
                loop.post(lambda: loop.cancel(request_id, asked))

    def check_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar and keeps it for the request that follows."""
        self._running()
        self._grammars.check(grammar)

    def read_adapter(self, directory: Path) -> AdapterWeights:
        """Reads and validates a PEFT adapter for this model. Sets torch's threads of the calling thread to one:
        the others belong to the engine. Waits for a step to begin where one runs.
        """
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        if self._loop is not None:
            # What comes before has held up the step that runs, and should not do so twice.
            self._loop.await_step()
        weights = read_peft_adapter(
            directory,
            shapes=self._shapes,
            max_rank=self._settings.max_adapter_rank,
            dtype=self._loaded.dtype,
            base_model=self._model.name,
        )
        return self._loaded.adapters.prepare(weights)

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """Promises an adapter a slot, which it has before the next step begins."""
        if not isinstance(weights, self._loaded.adapters.prepared):
            raise TypeError(f"these weights were read by another engine: {type(weights).__name__}")
        loop, promised = self._running(), Future[None]()
        try:
            self._promises.give(key)
        except ArgosyError as error:
            promised.set_exception(error)
        else:
            loop.post(lambda: loop.parts.adapters.put(key, weights))
            promised.set_result(None)
        return promised

    def unload_adapter(self, key: str) -> Future[None]:
        """Frees an adapter's slot between two steps."""

        def free(_: Parts, loop: EngineLoop) -> None:
            loop.drop_adapter(key)
            self._promises.take_back(key)

        return self._between_steps(free)

    def stats(self) -> EngineStats:
        """The picture after the last step, also of an engine that has ended."""
        if self._loop is None:
            raise not_running()
        return self._loop.stats

    def check_integrity(self) -> Future[None]:
        """Between two steps, checks that no block is leaked or shared. The future raises RuntimeError."""
        return self._between_steps(lambda _, loop: loop.check_integrity())

    def _between_steps(self, action: Callable[[Parts, EngineLoop], None]) -> Future[None]:
        loop = self._running()
        future: Future[None] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action(loop.parts, loop))
            except Exception as error:
                future.set_exception(error)

        loop.post(command)
        return future

    def _running(self) -> EngineLoop:
        loop = self._loop
        if loop is None or not loop.is_alive():
            raise not_running() from (loop.fault if loop is not None else None)
        return loop

    def _parts(self) -> Parts:
        settings, sampler = self._settings, Sampler(self._loaded.runner.greedy)
        blocks = BlockAllocator(
            _cache_tokens(settings) // settings.block_tokens,
            settings.block_tokens,
            share_prefixes=settings.prefix_cache,
        )
        return Parts(
            model=self._model.name,
            scheduler=Scheduler(
                blocks,
                # Each sequence of a step needs room for a token in it.
                max_batch=min(settings.max_batch, settings.max_step_tokens),
                max_step_tokens=settings.max_step_tokens,
                spare_tokens=self._loaded.spare_tokens,
            ),
            runner=self._loaded.runner,
            adapters=self._loaded.adapters,
            grammars=self._grammars,
            masks=MaskMaker(self.info.vocabulary_size, cores(settings)),
            sampler=sampler,
            speculator=self._speculator(blocks, sampler),
            threads=cores(settings),
        )

    def _speculator(self, blocks: BlockAllocator, sampler: Sampler) -> Speculator | None:
        settings, draft = self._settings, self._draft
        if settings.speculation == "off":
            return None
        model = draft and DraftModel(
            draft.loaded.runner,
            sampler,
            own_vocab_size=draft.vocabulary_size,
            vocab_size=self.info.vocabulary_size,
            context=draft.context,
            block_tokens=settings.block_tokens,
            step_tokens=settings.max_step_tokens,
        )
        return Speculator(
            blocks,
            settings.max_step_tokens,
            lookup=settings.speculation != "draft",
            model=model,
            always=settings.speculation != "auto",
        )


def _load_draft(draft: LocalModel, settings: GenerationSettings, context: int) -> Draft:
    config = read_config(draft.path)
    context = min(context, config.max_positions)
    return Draft(load_runner(draft.path, config, settings, context, ahead=False), context, config.vocab_size)


def _cache_tokens(settings: GenerationSettings) -> int:
    """Tokens that the cache's whole blocks hold."""
    return settings.kv_cache_tokens // settings.block_tokens * settings.block_tokens
