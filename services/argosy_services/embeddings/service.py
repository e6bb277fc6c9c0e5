"""Texts to vectors for callers: limits, choice of the model, tokens, batches, and the form of the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from argosy_services import metrics, tracing
from argosy_services.embeddings.batcher import BatchEncoder, Batcher, Job
from argosy_services.embeddings.types import EmbeddingModelInfo, Embeddings, StageTimings
from argosy_services.errors import invalid_field, model_not_found, prompt_too_long, tokenizer_mismatch
from argosy_services.leases import AdapterLeases, Lease, adapter_left
from argosy_services.rpc import validate
from argosy_services.tokenization.portions import portions
from argosy_services.tokenization.types import Encoding

MAX_TEXTS = 4096
MAX_TEXT_BYTES = 1 << 20

_LEAST_LENGTH = 1e-12


class TextEncoder(BatchEncoder, Protocol):
    """An embedding model; see `Encoder`."""

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """The encodings of texts, cut to what the model takes. Blocks; for any thread."""
        ...


class AdaptedEncoders(Protocol):
    """The adapters of an embedding model, where they are computed with."""

    def hold(self, key: str) -> AbstractAsyncContextManager[TextEncoder]:
        """The model with an adapter, for the length of an `async with` block. Raises ADAPTER_NOT_READY."""
        ...


class EmbeddingsService:
    """Embedding models by name. Its coroutines belong on an event loop; threads of its own do the work."""

    def __init__(
        self,
        models: Sequence[TextEncoder],
        leases: AdapterLeases,
        adapted: AdaptedEncoders,
        *,
        max_batch_tokens: int,
        max_waiting_texts: int,
        threads: int = 0,
    ) -> None:
        """The first of `models` answers calls that name none; `adapted` has the adapters of all. For the rest see
        `EmbeddingSettings`.
        """
        self._leases = leases
        self._adapted = adapted
        self._models = {model.info.name: model for model in models}
        self._default = models[0].info.name
        self._batcher = Batcher(max_batch_tokens=max_batch_tokens, max_waiting_texts=max_waiting_texts, threads=threads)

    def limit(self, *, max_batch_tokens: int, max_waiting_texts: int) -> None:
        """Changes the limits, for what comes from now on."""
        self._batcher.limit(max_batch_tokens=max_batch_tokens, max_waiting_texts=max_waiting_texts)

    @property
    def waiting_texts(self) -> int:
        """Texts that wait to be computed."""
        return self._batcher.waiting_texts

    def start(self) -> None:
        """Starts the threads that compute."""
        self._batcher.start()

    def close(self) -> None:
        """Ends the threads after the batches that run. Calls in progress end with DRAINING. Blocks."""
        self._batcher.close()

    def info(self, model: str) -> EmbeddingModelInfo:
        """One model, the default one for an empty name. Raises MODEL_NOT_FOUND."""
        return self._model(model).info

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
        tokenizer_fingerprint: str = "",
        adapter: str = "",
        adapter_sticky_key: str = "",
        tenant: str = "",
    ) -> Embeddings:
        """The vectors of texts; for the options see `EmbedRequest` in the schema.

        Raises MODEL_NOT_FOUND, TOKENIZER_MISMATCH, INVALID_FIELD, TOO_MANY_INPUTS, INPUT_TOO_LARGE, QUEUE_FULL,
        DRAINING, PROMPT_TOO_LONG where `truncate` is off, and for adapters ADAPTER_NOT_FOUND, ALIAS_NOT_FOUND,
        ADAPTER_NOT_READY and WRONG_BASE_MODEL. A caller that is cancelled leaves no work behind.
        """
        arrived = time.monotonic()
        served = self._model(model)
        _check(texts, served.info, dimensions, tokenizer_fingerprint)
        async with self._using(served, adapter, adapter_sticky_key) as (encoder, lease):
            with self._batcher.admit(len(texts)) as job:
                begun = time.monotonic()
                with tracing.span("tokenize", {"argosy.texts": len(texts)}):
                    encodings = await _tokenize(served, texts)
                tokenization_s = time.monotonic() - begun
                if not truncate:
                    _check_lengths(encodings, served.info)
                vectors = await job.run(encoder, [encoding.ids for encoding in encodings])
        if (trace := tracing.here()) is not None:
            _record(trace, served.info.name, job, sum(len(encoding.ids) for encoding in encodings))
        _count(served.info.name, lease, tenant, job, tokenization_s)
        vectors = vectors[:, :dimensions]
        if served.info.normalizes if normalize is None else normalize:
            vectors = _normalized(vectors)
        return Embeddings(
            model=served.info,
            vectors=vectors,
            tokens=[len(encoding.ids) for encoding in encodings],
            truncated=[encoding.truncated_tokens > 0 for encoding in encodings],
            timings=StageTimings(tokenization_s, job.queue_s, job.compute_s, time.monotonic() - arrived),
            adapter=lease.name if lease else "",
            adapter_version=lease.version if lease else "",
        )

    @asynccontextmanager
    async def _using(
        self, served: TextEncoder, adapter: str, sticky_key: str
    ) -> AsyncIterator[tuple[TextEncoder, Lease | None]]:
        """What computes a call's texts, leased for as long as that takes."""
        if not adapter:
            yield served, None
            return
        loop, scope = asyncio.get_running_loop(), asyncio.timeout(None)
        leasing = self._leases.lease(adapter, lambda: scope.reschedule(loop.time()), sticky_key)
        try:
            async with scope, AsyncExitStack() as held:
                with tracing.span("wait for adapter", {"argosy.adapter": adapter}):
                    lease = await held.enter_async_context(leasing)
                    lease.check_base(served.info.name)
                    encoder = await held.enter_async_context(self._adapted.hold(lease.key))
                yield encoder, lease
        except TimeoutError:
            if not scope.expired():
                raise
            raise adapter_left(adapter) from None

    def _model(self, name: str) -> TextEncoder:
        found = self._models.get(name or self._default)
        if found is None:
            raise model_not_found(name, sorted(self._models))
        return found


def _count(model: str, lease: Lease | None, tenant: str, job: Job, tokenization_s: float) -> None:
    adapter = lease.name if lease else metrics.NO_ADAPTER
    usage = {"tenant": metrics.tenant_label(tenant), "model": model, "adapter": adapter}
    metrics.USAGE_REQUESTS.labels(**usage).inc()
    metrics.USAGE_TOKENS.labels(**usage, kind="embedded").inc(sum(map(len, job.ids)))
    metrics.TOKENIZE_SECONDS.labels(model=model).observe(tokenization_s)
    metrics.EMBEDDING_QUEUE_SECONDS.labels(model=model).observe(job.queue_s)


def _record(trace: tracing.LiveSpan, model: str, job: Job, tokens: int) -> None:
    """Adds the stages of a finished job to the span of its call."""
    trace.set(
        {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": "argosy",
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": tokens,
        }
    )
    trace.stage("queue", job.queued, job.started)
    trace.stage("compute", job.started, job.finished, {"argosy.texts": len(job.ids)})


async def _tokenize(encoder: TextEncoder, texts: Sequence[str]) -> list[Encoding]:
    encodings: list[Encoding] = []
    for portion in portions(texts):
        encodings += await asyncio.to_thread(encoder.tokenize, portion)
    return encodings


def _check(texts: Sequence[str], info: EmbeddingModelInfo, dimensions: int | None, fingerprint: str) -> None:
    if fingerprint and fingerprint != info.tokenizer_fingerprint:
        raise tokenizer_mismatch(info.name, expected=info.tokenizer_fingerprint, value=fingerprint)
    if dimensions is not None and not 1 <= dimensions <= info.dimensions:
        raise invalid_field(
            "dimensions", "must be at most the model's own", limit=f"1 to {info.dimensions}", value=dimensions
        )
    validate.count("texts", len(texts), limit=MAX_TEXTS)
    for place, text in enumerate(texts):
        validate.text_size(f"texts[{place}]", text, limit_bytes=MAX_TEXT_BYTES)


def _check_lengths(encodings: Sequence[Encoding], info: EmbeddingModelInfo) -> None:
    for place, encoding in enumerate(encodings):
        if encoding.truncated_tokens:
            needed = len(encoding.ids) + encoding.truncated_tokens
            raise prompt_too_long(f"texts[{place}]", limit=info.max_input_tokens, value=needed)


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, _LEAST_LENGTH)
