"""The torch engine as the rest of the fleet sees it: an `Engine` whose methods may be called from any thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
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
from argosy_services.engine.torch_engine.architectures import read_config
from argosy_services.engine.torch_engine.config import DecoderConfig
from argosy_services.engine.torch_engine.grammar import GrammarCompiler
from argosy_services.engine.torch_engine.kv_cache import BlockAllocator
from argosy_services.engine.torch_engine.kv_pool import KvPool
from argosy_services.engine.torch_engine.loop import EngineLoop, Parts, not_running
from argosy_services.engine.torch_engine.lora.reader import LoraWeights, read_peft_adapter
from argosy_services.engine.torch_engine.lora.slots import AdapterSlots
from argosy_services.engine.torch_engine.model_runner import ModelRunner
from argosy_services.engine.torch_engine.models.decoder import Decoder
from argosy_services.engine.torch_engine.models.weights import load_weights
from argosy_services.engine.torch_engine.scheduler import Scheduler
from argosy_services.errors import ArgosyError, Reason
from argosy_services.models.types import LocalModel
from argosy_services.settings import GenerationSettings


class TorchEngine:
    """Continuous batching over a paged cache on one thread; see `engine.base.Engine` for the methods."""

    def __init__(
        self,
        model: LocalModel,
        settings: GenerationSettings,
        decoder: Decoder,
        info: EngineInfo,
        grammars: GrammarCompiler,
    ) -> None:
        self.info = info
        self._model = model
        self._settings = settings
        self.max_waiting = settings.max_waiting
        self._decoder = decoder
        self._grammars = grammars
        self._loop: EngineLoop | None = None

    @classmethod
    def load(cls, model: LocalModel, settings: GenerationSettings, tokenizer_json: str) -> TorchEngine:
        """Reads a checkpoint. Raises UnsupportedModelError."""
        config = read_config(model.path)
        device = torch.device(settings.device)
        dtype = compute_dtype(settings.dtype, device)
        weights = load_weights(model.path, config, dtype, device)
        limits = (settings.max_context_tokens or config.max_positions, config.max_positions, _cache_tokens(settings))
        context = min(limits)
        info = EngineInfo(
            engine="torch",
            architecture=config.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=settings.device,
            parameter_count=sum(tensor.numel() for tensor in weights.parameters()),
            max_context_tokens=context,
            vocabulary_size=config.vocab_size,
            eos_token_ids=config.eos_token_ids,
            max_adapters=settings.max_adapters,
            max_adapter_rank=settings.max_adapter_rank,
        )
        grammars = GrammarCompiler(tokenizer_json, config.vocab_size, config.eos_token_ids)
        return cls(model, settings, Decoder(config, weights, context), info, grammars)

    def start(self, on_step: StepCallback) -> None:
        """Starts the engine's thread; once."""
        if self._loop is not None:
            raise RuntimeError("the engine was started already")
        self._loop = EngineLoop(self._parts(self._decoder.config), on_step)
        self._loop.start()

    def close(self) -> None:
        """Stops the thread and waits for it."""
        if self._loop is not None and self._loop.is_alive():
            self._loop.stop()

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
        limit = self._settings.max_batch + self.max_waiting
        if not loop.offer(request, limit):
            raise ArgosyError(
                Reason.QUEUE_FULL,
                f"{limit} sequences run or wait already, and no more are taken; retry later",
                limit=limit,
                value=limit,
                retry_after_s=1.0,
            )

    def cancel(self, request_id: str) -> None:
        """Frees a sequence before the next step."""
        asked = time.monotonic()
        loop = self._loop
        if loop is not None and loop.is_alive():
            with suppress(ArgosyError):  # An engine that ended in between has freed everything.
                loop.post(lambda: loop.cancel(request_id, asked))

    def check_grammar(self, grammar: Grammar) -> None:
        """Compiles a grammar and keeps it for the request that follows."""
        self._grammars.matcher(grammar)

    def read_adapter(self, directory: Path) -> AdapterWeights:
        """Reads and validates a PEFT adapter for this model."""
        return read_peft_adapter(
            directory,
            shapes=self._decoder.adaptable(),
            max_rank=self._settings.max_adapter_rank,
            dtype=self._decoder.dtype,
            base_model=self._model.name,
        )

    def load_adapter(self, key: str, weights: AdapterWeights) -> Future[None]:
        """Puts an adapter into a slot between two steps."""
        if not isinstance(weights, LoraWeights):
            raise TypeError(f"these weights were read by another engine: {type(weights).__name__}")
        return self._between_steps(lambda parts, _: parts.adapters.put(key, weights))

    def unload_adapter(self, key: str) -> Future[None]:
        """Frees an adapter's slot between two steps."""
        return self._between_steps(lambda _, loop: loop.drop_adapter(key))

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

    def _parts(self, config: DecoderConfig) -> Parts:
        settings, decoder = self._settings, self._decoder
        blocks = _cache_tokens(settings) // settings.block_tokens
        adapters = AdapterSlots(settings.max_adapters)
        pool = KvPool(config, blocks, settings.block_tokens, decoder.dtype, decoder.device)
        return Parts(
            model=self._model.name,
            scheduler=Scheduler(
                BlockAllocator(blocks, settings.block_tokens, share_prefixes=settings.prefix_cache),
                max_batch=settings.max_batch,
                max_step_tokens=settings.max_step_tokens,
            ),
            runner=ModelRunner(decoder, pool, adapters),
            adapters=adapters,
            grammars=self._grammars,
            threads=settings.threads or os.cpu_count() or 1,
        )


def _cache_tokens(settings: GenerationSettings) -> int:
    """Tokens that the cache's whole blocks hold."""
    return settings.kv_cache_tokens // settings.block_tokens * settings.block_tokens


def compute_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The type to compute with: what is asked for, or the narrowest that the device multiplies natively."""
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without these instructions bfloat16 products are emulated, some eight times slower than float32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
