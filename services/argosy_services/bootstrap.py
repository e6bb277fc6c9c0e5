"""The composition root: which classes a fleet is made of. Both runtimes make their services here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from argosy.api.adapters.v1.adapters_service_pb2_grpc import add_AdaptersServiceServicer_to_server
from argosy.api.agents.v1.agents_service_pb2_grpc import add_AgentsServiceServicer_to_server
from argosy.api.embeddings.v1.embeddings_service_pb2_grpc import add_EmbeddingsServiceServicer_to_server
from argosy.api.generation.v1.generation_service_pb2_grpc import add_GenerationServiceServicer_to_server
from argosy.api.tokenization.v1.tokenization_service_pb2_grpc import add_TokenizationServiceServicer_to_server
from argosy_services import metrics
from argosy_services.adapters.residence import Residence
from argosy_services.adapters.service import AdaptersService
from argosy_services.adapters.servicer import AdaptersServicer
from argosy_services.adapters.tiers import AdapterTiers
from argosy_services.agents.local_model import LocalChatModel, LocalEmbedder
from argosy_services.agents.ports import Embedder, Generation
from argosy_services.agents.service import AgentsService
from argosy_services.agents.servicer import AgentsServicer
from argosy_services.agents.store import RunStore
from argosy_services.agents.toolbox import Toolbox
from argosy_services.embeddings.service import AdaptedEncoders, EmbeddingsService
from argosy_services.embeddings.servicer import EmbeddingsServicer
from argosy_services.engine.base import AdapterHost, Engine, EngineStats
from argosy_services.engine.factory import EngineFactory, create_engine
from argosy_services.errors import ArgosyError, Reason
from argosy_services.generation.pace import Pace
from argosy_services.generation.service import GenerationService, ServedModel
from argosy_services.generation.servicer import GenerationServicer
from argosy_services.instruments import Instrument, Value
from argosy_services.leases import AdapterLeases, adapter_name
from argosy_services.models.store import ModelStore
from argosy_services.models.types import LocalModel
from argosy_services.rpc.auth import Authenticator
from argosy_services.rpc.dispatch import MethodTable
from argosy_services.rpc.gate import Gate
from argosy_services.settings import EmbeddingSettings, GenerationSettings, Settings
from argosy_services.storage.database import Database
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.service import TokenizationService
from argosy_services.tokenization.servicer import TokenizationServicer
from argosy_services.vllm_names import AdaptersAtWork, watch_adapters

if TYPE_CHECKING:
    from argosy_services.embeddings.adapters import EncoderAdapters
    from argosy_services.embeddings.encoder import Encoder


class Fleet:
    """All five services over one language model and one embedding model."""

    def __init__(self, settings: Settings, create: EngineFactory = create_engine) -> None:
        """Loads the models. Blocks for seconds. Raises ArgosyError or UnsupportedModelError."""
        language = language_model(settings)
        tokenizer = Tokenizer.load(language)
        self.engine = make_engine(settings, language, tokenizer, create)
        encoder = make_encoder(settings)
        self.tokenization = make_tokenization([tokenizer, encoder.tokenizer])
        self.encoder_adapters = make_encoder_adapters(settings, encoder)
        self.database = Database(settings.database_dsn)
        self.tiers = make_tiers(settings.generation, self.engine)
        self.encoder_tiers = make_tiers(settings.embeddings, self.encoder_adapters)
        residences = {language.name: self.tiers, encoder.info.name: self.encoder_tiers}
        self.adapters = make_adapters(settings, residences, self.database)
        self.embeddings = make_embeddings(settings, encoder, self.adapters, self.encoder_adapters)
        self.generation = GenerationService(
            [ServedModel(language, self.engine, tokenizer)],
            self.adapters,
            pace=make_pace(settings.generation),
            explain_requests=settings.generation.explain_requests,
        )
        self.agents = make_agents(settings, self.generation, self.database, LocalEmbedder(self.embeddings))
        self._model, self._encoder = language.name, encoder.info.name

    @property
    def healthy(self) -> bool:
        """Whether the engine takes sequences, or will again by itself."""
        return self.engine.healthy

    def register(self, server: MethodTable, gate: Gate, auth: Authenticator) -> None:
        """Makes the servicers and adds them to `server`."""
        _add(server, add_TokenizationServiceServicer_to_server, TokenizationServicer(self.tokenization, gate, auth))
        _add(server, add_GenerationServiceServicer_to_server, GenerationServicer(self.generation, gate, auth))
        _add(server, add_EmbeddingsServiceServicer_to_server, EmbeddingsServicer(self.embeddings, gate, auth))
        _add(server, add_AdaptersServiceServicer_to_server, AdaptersServicer(self.adapters, gate, auth))
        _add(server, add_AgentsServiceServicer_to_server, AgentsServicer(self.agents, gate, auth))

    async def start(self) -> None:
        """Starts the engine and the background work."""
        self.generation.start()
        await self.adapters.start()
        self.embeddings.start()
        await self.agents.start()
        watch_engine(self._model, self.engine)
        watch_tiers(self._model, self.tiers)
        watch_encoder(self._encoder, self.encoder_adapters, self.encoder_tiers)

    async def close(self) -> None:
        """Stops what `start` started, callers before what they call."""
        await self.agents.close()
        await self.adapters.close()
        for part in (self.tiers, self.encoder_tiers, self.encoder_adapters):
            await asyncio.to_thread(part.close)
        await asyncio.to_thread(self.generation.close)
        await asyncio.to_thread(self.embeddings.close)
        await asyncio.to_thread(self.tokenization.close)
        await asyncio.to_thread(self.database.close)


def build(settings: Settings) -> Fleet:
    """Loads everything that the settings name."""
    return Fleet(settings)


def language_model(settings: Settings) -> LocalModel:
    """The generation model's files. Raises ArgosyError or ModelStoreError."""
    return ModelStore(settings.models_dir).get(settings.generation.model)


def make_engine(
    settings: Settings, language: LocalModel, tokenizer: Tokenizer, create: EngineFactory = create_engine
) -> Engine:
    """The engine of the generation model. Blocks for seconds. Raises ArgosyError or UnsupportedModelError."""
    return create(language, settings.generation, tokenizer.json, _draft_model(settings, language, tokenizer))


def _draft_model(settings: Settings, language: LocalModel, tokenizer: Tokenizer) -> LocalModel | None:
    """The model that guesses tokens, if there is one. Raises TOKENIZER_MISMATCH."""
    name = settings.generation.draft_model
    if not name or settings.generation.speculation in ("off", "prompt_lookup"):
        return None
    draft = ModelStore(settings.models_dir).get(name)
    fingerprint = Tokenizer.load(draft).fingerprint
    if fingerprint != tokenizer.fingerprint:
        raise ArgosyError(
            Reason.TOKENIZER_MISMATCH,
            f"draft model '{draft.name}' has tokenizer {fingerprint}, model '{language.name}' has "
            f"{tokenizer.fingerprint}; name a draft model with the same tokenizer, or none",
            model=language.name,
            expected=tokenizer.fingerprint,
            value=fingerprint,
        )
    return draft


def sentence_model(settings: Settings) -> LocalModel:
    """The embedding model's files. Raises ArgosyError or ModelStoreError."""
    return ModelStore(settings.models_dir).get(settings.embeddings.model)


def make_tokenization(tokenizers: Sequence[Tokenizer]) -> TokenizationService:
    """The tokenization service; the first tokenizer is the default."""
    return TokenizationService(tokenizers, default=tokenizers[0].info.model)


def make_encoder(settings: Settings) -> Encoder:
    """The embedding model. Blocks for seconds. Raises ArgosyError."""
    # Imports torch; most replicas of a cluster do without.
    from argosy_services.embeddings.encoder import Encoder

    return Encoder.load(sentence_model(settings), settings.embeddings.dtype)


def make_encoder_adapters(settings: Settings, encoder: Encoder) -> EncoderAdapters:
    """What has the embedding model with adapters."""
    from argosy_services.embeddings.adapters import EncoderAdapters

    return EncoderAdapters(encoder, max_rank=settings.embeddings.max_adapter_rank)


def make_embeddings(
    settings: Settings, encoder: Encoder, leases: AdapterLeases, adapted: AdaptedEncoders
) -> EmbeddingsService:
    """The embeddings service over one model."""
    return EmbeddingsService(
        [encoder],
        leases,
        adapted,
        max_batch_tokens=settings.embeddings.max_batch_tokens,
        max_waiting_texts=settings.embeddings.max_waiting_texts,
        threads=settings.embeddings.threads,
    )


def make_pace(settings: GenerationSettings) -> Pace:
    """When streams send: messages take some 3 % of the cores, where there are many less than half of the event loop's
    thread (docs/adr/0019).
    """
    per_second = settings.stream_messages_per_second or min(2_000, 80 * len(os.sched_getaffinity(0)))
    return Pace(settings.stream_interval_ms / 1000, per_second)


def make_tiers(settings: GenerationSettings | EmbeddingSettings, host: AdapterHost) -> AdapterTiers:
    """The slots and the memory for the adapters of a model."""
    return AdapterTiers(host, slots=settings.max_adapters, memory_bytes=settings.adapter_memory_bytes)


def make_adapters(settings: Settings, residences: Mapping[str, Residence], database: Database) -> AdaptersService:
    """The adapters service over the residences of base models' adapters."""
    return AdaptersService(
        residences,
        database,
        roots=settings.adapter_roots,
        remotes=settings.adapters.remotes,
        max_size_bytes=settings.adapters.max_size_bytes,
        directory=settings.adapters.cache_dir or settings.data_dir / "adapter-cache",
    )


def make_agents(
    settings: Settings, generation: Generation, database: Database, embedder: Embedder, *, replicated: bool = False
) -> AgentsService:
    """The agents service over the generation service; `replicated` where there may be several of it."""
    toolbox = Toolbox(settings.agents)
    return AgentsService(
        LocalChatModel(generation, settings.agents.priority),
        toolbox.safe(),
        RunStore(
            database,
            keep_runs=settings.agents.keep_runs,
            wait_s=settings.agents.wait_seconds,
            shared=replicated,
        ),
        max_running=settings.agents.max_running,
        embedder=embedder,
        toolbox=toolbox,
        wait_s=settings.agents.wait_seconds,
    )


def _add(server: MethodTable, add: Callable[[Any, Any], None], servicer: object) -> None:
    # The generated functions ask for their own base classes and for a real server; they use neither.
    add(servicer, server)


def watch_engine(model: str, engine: Engine) -> None:
    """Lets the gauges of an engine read its latest picture whenever they are exported."""
    readings: dict[Instrument[Value], Callable[[EngineStats], int]] = {
        metrics.SEQUENCES_RUNNING: lambda stats: stats.running,
        metrics.SEQUENCES_WAITING: lambda stats: stats.waiting,
        metrics.WAITING_TOKENS: lambda stats: stats.waiting_tokens,
        metrics.KV_BLOCKS_IN_USE: lambda stats: stats.kv_blocks_in_use,
        metrics.KV_BLOCKS_TOTAL: lambda stats: stats.kv_blocks_total,
        metrics.ADAPTER_SLOTS_IN_USE: lambda stats: stats.adapters,
    }
    for gauge, reading in readings.items():
        gauge.labels(model=model).read(lambda reading=reading: reading(engine.stats()))
    metrics.ADAPTER_SLOTS_TOTAL.labels(model=model).set(engine.info.max_adapters)
    watch_adapters(model, lambda: _adapters_at_work(engine))


def _adapters_at_work(engine: Engine) -> AdaptersAtWork:
    stats = engine.stats()
    return AdaptersAtWork(engine.info.max_adapters, _names(stats.running_adapters), _names(stats.waiting_adapters))


def _names(keys: Sequence[str]) -> tuple[str, ...]:
    """Names of adapters; versions of one name count once."""
    return tuple(sorted(set(map(adapter_name, keys))))


def watch_encoder(model: str, adapters: EncoderAdapters, tiers: AdapterTiers) -> None:
    """Lets the slots of the embedding model be read whenever they are exported."""
    metrics.ADAPTER_SLOTS_IN_USE.labels(model=model).read(lambda: len(adapters))
    metrics.ADAPTER_SLOTS_TOTAL.labels(model=model).set(tiers.slots)
    watch_tiers(model, tiers)


def watch_tiers(model: str, tiers: AdapterTiers) -> None:
    """Lets the counters of a model's slots, and which adapter is where, be read whenever they are exported."""
    counts = tiers.counts
    metrics.ADAPTER_HITS.labels(model=model).read(lambda: counts.hits)
    metrics.ADAPTER_MISSES.labels(model=model).read(lambda: counts.misses)
    metrics.ADAPTER_EVICTIONS.labels(model=model).read(lambda: counts.evictions)
    metrics.ADAPTER_RESIDENT.read_rows(
        model, lambda: {(model, adapter_name(key), tier.value): 1.0 for key, tier in tiers.residents.items()}
    )
