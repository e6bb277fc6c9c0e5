"""The Ray Serve runtime: each service an application of its own, made of the same classes as the embedded runtime.

Each function at the end builds one application; `cluster.serve_config` names them. The generation application has two
deployments: gateways, which read requests and hold no model, and engines, which gateways reach by handles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address

from argosy_services import tracing
from argosy_services.adapters.servicer import AdaptersServicer
from argosy_services.agents.servicer import AgentsServicer
from argosy_services.bootstrap import (
    language_model,
    make_adapters,
    make_agents,
    make_embeddings,
    make_encoder,
    make_encoder_adapters,
    make_engine,
    make_pace,
    make_tiers,
    make_tokenization,
    sentence_model,
    watch_encoder,
    watch_engine,
    watch_tiers,
)
from argosy_services.cluster import handles
from argosy_services.cluster.adapter_replica import AdapterReplica
from argosy_services.cluster.engine_host import EngineHost
from argosy_services.cluster.handles import (
    FleetAdapters,
    GatewayPeers,
    HandleEmbedder,
    HandleEngine,
    HandleGeneration,
    HandleLeases,
    KnownAdapter,
)
from argosy_services.cluster.links import LinkedEngines
from argosy_services.cluster.remote_engine import RemoteEngine
from argosy_services.cluster.replica import Replica
from argosy_services.cluster.roster import ENGINES
from argosy_services.embeddings.service import TextEncoder
from argosy_services.embeddings.servicer import EmbeddingsServicer
from argosy_services.engine.base import EngineInfo, Grammar
from argosy_services.engine.factory import EngineFactory, create_engine
from argosy_services.errors import ArgosyError
from argosy_services.generation.explanation import Explanation
from argosy_services.generation.service import GenerationService, ServedModel
from argosy_services.generation.servicer import GenerationServicer
from argosy_services.generation.types import Event, GenerationSpec, ModelInfo
from argosy_services.leases import Lease
from argosy_services.models.types import LocalModel
from argosy_services.storage.database import Database
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.servicer import TokenizationServicer

Given = Mapping[str, Any]


class TokenizationDeployment(TokenizationServicer):
    """Tokenizers of both models."""

    async def __init__(self, given: Given) -> None:
        self._replica = replica = Replica(given)
        models = (language_model(replica.settings), sentence_model(replica.settings))
        tokenizers = await asyncio.to_thread(lambda: [Tokenizer.load(model) for model in models])
        super().__init__(make_tokenization(tokenizers), replica.gate, replica.auth)
        replica.ready()

    async def reconfigure(self, live: Given) -> None:
        """Takes over settings while it runs; see `serve_config`."""
        self._replica.reconfigure(live)

    def __del__(self) -> None:
        self._replica.close()


class EmbeddingsDeployment(EmbeddingsServicer, AdapterReplica):
    """The embedding model. Ready when its weights and the adapters that should be resident are loaded."""

    async def __init__(self, given: Given) -> None:
        self._replica = replica = Replica(given)
        encoder = await asyncio.to_thread(make_encoder, replica.settings)
        model = encoder.info.name
        self._encoders = make_encoder_adapters(replica.settings, encoder)
        tiers = make_tiers(replica.settings.embeddings, self._encoders)
        self._embeddings = make_embeddings(replica.settings, encoder, HandleLeases(), self)
        self._embeddings.start()
        watch_encoder(model, self._encoders, tiers)
        await self._begin_adapters(model, tiers)
        super().__init__(self._embeddings, replica.gate, replica.auth)
        replica.ready()

    async def reconfigure(self, live: Given) -> None:
        """Takes over settings while it runs; see `serve_config`."""
        limits = self._replica.reconfigure(live).embeddings
        self._embeddings.limit(max_batch_tokens=limits.max_batch_tokens, max_waiting_texts=limits.max_waiting_texts)

    async def vectors(self, texts: list[str]) -> NDArray[np.float32] | ArgosyError:
        """Vectors of length 1 of the default model, for agents."""
        try:
            return (await self._embeddings.embed(texts, normalize=True)).vectors
        except ArgosyError as error:
            return error

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[TextEncoder]:
        """The model with an adapter; see `AdaptedEncoders`."""
        await self._look_for(key)
        async with self._tiers.hold(key):
            yield self._encoders.adapted(key)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of replicas goes by; see `scaling.EmbeddingScaling`."""
        return {"waiting_texts": self._embeddings.waiting_texts}

    async def __del__(self) -> None:
        await self._end_adapters()
        await asyncio.to_thread(self._encoders.close)
        await asyncio.to_thread(self._embeddings.close)
        self._replica.close()


class AdaptersDeployment(AdaptersServicer):
    """The registry of adapters; the engines that hold them are elsewhere. There is one replica."""

    async def __init__(self, given: Given) -> None:
        self._replica = replica = Replica(given)
        self._residences = {
            language_model(replica.settings).name: FleetAdapters(handles.engines),
            sentence_model(replica.settings).name: FleetAdapters(lambda: handles.service("embeddings")),
        }
        self._database = Database(replica.settings.database_dsn)
        self._adapters = make_adapters(replica.settings, self._residences, self._database)
        await self._adapters.start()
        # Replicas that hold them already go on with them.
        for wanted, directory in self._adapters.kept():
            self._residences[wanted.base_model].known[wanted.key] = KnownAdapter(str(directory), wanted.pinned)
        super().__init__(self._adapters, replica.gate, replica.auth)
        replica.ready()

    async def reconfigure(self, live: Given) -> None:
        """Takes over settings while it runs; see `serve_config`."""
        settings = self._replica.reconfigure(live)
        limits = settings.adapters
        self._adapters.accept(settings.adapter_roots, limits.remotes, limits.max_size_bytes)

    async def hold(self, name: str, sticky_key: str = "") -> AsyncIterator[Lease | ArgosyError | None]:
        """A lease for as long as the stream is read: first the lease or why there is none, then None if it must end."""
        revoked = asyncio.Event()
        try:
            async with self._adapters.lease(name, revoked.set, sticky_key) as lease:
                yield lease
                await revoked.wait()
                yield None
                # The holder ends its sequences and closes the stream.
                await asyncio.Event().wait()
        except ArgosyError as error:
            yield error

    async def known(self, model: str) -> dict[str, KnownAdapter]:
        """The adapters of a model that its replicas may be asked for, and where their files are."""
        return dict(self._residences[model].known)

    async def check_health(self) -> None:
        """Ray Serve asks as long as it keeps the replica; see `notice`."""
        self._replica.checked()

    async def __del__(self) -> None:
        await self._adapters.close()
        await asyncio.to_thread(self._database.close)
        self._replica.close()


class EngineDeployment(AdapterReplica):
    """One engine. Ready when its weights and the adapters that should be resident are loaded."""

    create: EngineFactory = staticmethod(create_engine)

    async def __init__(self, given: Given) -> None:
        self._replica = replica = Replica(given)
        self._model: LocalModel = language_model(replica.settings)
        engine = await asyncio.to_thread(
            lambda: make_engine(replica.settings, self._model, Tokenizer.load(self._model), self.create)
        )
        tiers = make_tiers(replica.settings.generation, engine)
        self._host = EngineHost(engine, self._acquire, tiers.release)
        self._misses = 0
        self._contact = await self._host.start(get_node_ip_address())
        watch_engine(self._model.name, engine)
        watch_tiers(self._model.name, tiers)
        await self._begin_adapters(self._model.name, tiers)
        replica.ready()

    async def reconfigure(self, live: Given) -> None:
        """Takes over settings while it runs; see `serve_config`."""
        limits = self._replica.reconfigure(live).generation
        self._host.engine.max_waiting = limits.max_waiting
        self._host.engine.max_waiting_tokens = limits.max_waiting_tokens

    async def describe(self) -> EngineInfo:
        """What the engine serves."""
        return self._host.engine.info

    def record_replica_metadata(self) -> dict[str, Any]:
        """Where gateways reach the engine; Ray Serve tells whoever holds a handle."""
        return self._contact.published()

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """What is wrong with a grammar."""
        try:
            await asyncio.to_thread(self._host.engine.check_grammar, grammar)
        except ArgosyError as error:
            return error
        return None

    def record_routing_stats(self) -> dict[str, Any]:
        """What the router goes by; see `placement.ReplicaView`."""
        stats = self._host.engine.stats()
        return {
            "sequences": stats.running + stats.waiting,
            "waiting_tokens": stats.waiting_tokens,
            "kv_use": stats.kv_blocks_in_use / max(1, stats.kv_blocks_total),
            "adapters": sorted(self._tiers.in_slots),
            "ready": stats.ready,
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the number of replicas goes by; see `scaling.EngineScaling`."""
        stats = self._host.engine.stats()
        misses, self._misses = self._tiers.counts.misses - self._misses, self._tiers.counts.misses
        return {
            "waiting_tokens": stats.waiting_tokens,
            "kv_use": stats.kv_blocks_in_use / max(1, stats.kv_blocks_total),
            "adapter_misses": misses,
        }

    async def _acquire(self, adapter: str) -> None:
        """A sequence wants an adapter in a slot."""
        await self._look_for(adapter)
        await self._tiers.acquire(adapter)

    async def check_health(self) -> None:
        """Raises once the engine has ended; Ray Serve then replaces the replica."""
        self._host.check_health()

    async def __del__(self) -> None:
        # Ray Serve waits for its own calls only, and as long as `drain_seconds` for this.
        await self._host.drain()
        await self._end_adapters()
        await asyncio.to_thread(self._host.engine.close)
        self._replica.close()


class GenerationDeployment(GenerationServicer):
    """A gateway: reads requests, tokenizes, and writes what engine replicas generate."""

    async def __init__(self, given: Given, engines: DeploymentHandle) -> None:
        self._replica = replica = Replica(given)
        model = language_model(replica.settings)
        tokenizer = await asyncio.to_thread(Tokenizer.load, model)
        self._links = LinkedEngines(ENGINES, HandleEngine(engines))
        runner = RemoteEngine(await engines.describe.remote(), self._links)
        self._generation = GenerationService(
            [ServedModel(model, runner, tokenizer)],
            HandleLeases(),
            pace=make_pace(replica.settings.generation),
            explain_requests=replica.settings.generation.explain_requests,
            peers=GatewayPeers(),
        )
        self._generation.start()
        super().__init__(self._generation, replica.gate, replica.auth)
        replica.ready()

    async def reconfigure(self, live: Given) -> None:
        """Takes over settings while it runs; see `serve_config`."""
        self._replica.reconfigure(live)

    async def explanation(self, request_id: str, tenant: str) -> Explanation | None:
        """What this gateway knows of a request, for the others."""
        return self._generation.explain_here(request_id, tenant)

    async def models(self) -> list[ModelInfo]:
        """The served models, for agents."""
        return self._generation.models()

    async def events(
        self,
        spec: GenerationSpec,
        request_id: str,
        remaining_s: float | None,
        tenant: str,
        trace: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Event | ArgosyError]:
        """A generation, for agents, as part of their trace; the last event is Finished or an error."""
        deadline = None if remaining_s is None else time.monotonic() + remaining_s
        try:
            stream = self._generation.stream(spec, request_id=request_id, deadline=deadline, tenant=tenant)
            with tracing.incoming("gateway", trace or {}):
                async with aclosing(stream) as events:
                    async for event in events:
                        yield event
        except ArgosyError as error:
            yield error

    async def __del__(self) -> None:
        self._generation.close()
        await self._links.close()
        self._replica.close()


class AgentsDeployment(AgentsServicer):
    """Agents, which call the generation service by handle."""

    async def __init__(self, given: Given) -> None:
        self._replica = replica = Replica(given)
        generation = await HandleGeneration.connect()
        self._database = Database(replica.settings.database_dsn)
        self._agents = make_agents(replica.settings, generation, self._database, HandleEmbedder(), replicated=True)
        await self._agents.start()
        super().__init__(self._agents, replica.gate, replica.auth)
        replica.ready()

    async def reconfigure(self, live: Given) -> None:
        """Takes over settings while it runs; see `serve_config`."""
        self._agents.max_running = self._replica.reconfigure(live).agents.max_running

    async def check_health(self) -> None:
        """Ray Serve asks as long as it keeps the replica; see `notice`."""
        self._replica.checked()

    async def __del__(self) -> None:
        await self._agents.close()
        await asyncio.to_thread(self._database.close)
        self._replica.close()


def tokenization(given: Given) -> serve.Application:
    """The tokenization application. `given` are settings that go before those of the environment."""
    return _deployment(TokenizationDeployment, "Tokenization").bind(given)


def embeddings(given: Given) -> serve.Application:
    """The embeddings application."""
    return _deployment(EmbeddingsDeployment, "Embeddings").bind(given)


def adapters(given: Given) -> serve.Application:
    """The adapters application."""
    return _deployment(AdaptersDeployment, "Adapters").bind(given)


def generation(given: Given) -> serve.Application:
    """The generation application: gateways before engines."""
    engine = _deployment(EngineDeployment, handles.ENGINE).bind(given)
    return _deployment(GenerationDeployment, "Generation").bind(given, engine)


def agents(given: Given) -> serve.Application:
    """The agents application."""
    return _deployment(AgentsDeployment, "Agents").bind(given)


def _deployment(servicer: Callable[..., Any], name: str) -> serve.Deployment:
    # How many replicas there are and what each may use stands in the configuration; see cluster/serve_config.py.
    made: serve.Deployment = serve.deployment(name=name)(servicer)
    return made
