"""The neighbours of a service on a cluster, reached by handles of Ray Serve.

Nothing here retries or decides: each class gives one port of the cores a shape that works across processes. Errors of
the fleet travel as values, because Ray wraps what is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from argosy_services import tracing
from argosy_services.adapters.types import AdapterTier
from argosy_services.cluster.remote_engine import ReplicaLost
from argosy_services.engine.base import AdapterWeights, Grammar
from argosy_services.errors import ArgosyError, Reason, model_not_found
from argosy_services.generation.explanation import Explanation
from argosy_services.generation.types import Event, GenerationSpec, ModelInfo
from argosy_services.leases import Lease

log = structlog.get_logger("argosy.cluster")
T = TypeVar("T")

ENGINE = "Engine"
_ABSENT_S = 1.0


def engines() -> DeploymentHandle:
    """The engine replicas of the generation application."""
    return serve.get_deployment_handle(ENGINE, app_name="generation")


def service(area: str) -> DeploymentHandle:
    """The replicas behind the port of a service, for calls that are not part of its schema."""
    return serve.get_app_handle(area)


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a replica read of an adapter (`engine.base.AdapterWeights`)."""

    version: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int


@contextmanager
def _losing() -> Any:
    """Tells the end of a replica from what its code raises, and from the caller's own wish to stop."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Ray Serve cancelled the call: its replica stops, or shared a request with a call that was cancelled.
        raise ReplicaLost("the call was cancelled") from None
    except RayTaskError:
        raise
    except RayActorError as lost:
        raise ReplicaLost(type(lost).__name__) from lost


class HandleEngine:
    """`links.AnyEngine` over the handle of the engine deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def wake(self) -> None:
        """A call that waits at a handle has Ray Serve start a replica where there is none."""
        with _losing():
            await self._handle.describe.remote()

    async def check_grammar(self, grammar: Grammar) -> ArgosyError | None:
        """Asks the replica with the fewest calls."""
        with _losing():
            return await self._handle.check_grammar.remote(grammar)


@dataclass(frozen=True, slots=True)
class KnownAdapter:
    """What an engine needs to load an adapter by itself."""

    directory: str
    pinned: bool


class FleetAdapters:
    """`adapters.residence.Residence` over all replicas that compute with a model, each of which has tiers of its own.

    `known` says which adapters a replica may be asked for. Lives on one event loop.
    """

    def __init__(self, handle: Callable[[], DeploymentHandle]) -> None:
        self.known: dict[str, KnownAdapter] = {}
        self._handle = handle

    async def read(self, directory: Path) -> AdapterWeights:
        """Has one replica read and check an adapter, as soon as there is one."""
        while True:
            try:
                return _value(await self._handle().read_adapter.remote(str(directory)))
            except RayServeException:
                # The generation application is not there yet: a fleet starts with the adapters of the one before.
                await asyncio.sleep(_ABSENT_S)

    async def add(self, key: str, directory: Path, weights: AdapterWeights | None = None, *, pinned: bool) -> None:
        """Has all replicas take an adapter in; done when every one has it."""
        # Noted before it is sent: a replica that starts meanwhile finds it in one way or the other.
        known = self.known[key] = KnownAdapter(str(directory), pinned)
        errors = await self._tell("load_adapter", key, known)
        if errors:
            await self.remove(key)
            raise errors[0]

    def tier(self, key: str) -> AdapterTier | None:
        """Each engine has its own."""
        return None

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Nothing to do here: the engine that is given a sequence holds its adapter."""
        yield

    async def remove(self, key: str) -> None:
        """Has all replicas let an adapter go."""
        self.known.pop(key, None)
        errors = await self._tell("unload_adapter", key)
        if errors:
            raise errors[0]

    async def _tell(self, method: str, *arguments: object) -> list[ArgosyError]:
        answers = await self._handle().broadcast(method, *arguments).results_async()
        return [answer for answer in answers if isinstance(answer, ArgosyError)]


class HandleLeases:
    """`generation.ports.AdapterLeases` from the adapters service. A lease is a stream that stays open while it is held,
    so that one whose holder dies is given back.
    """

    @asynccontextmanager
    async def lease(self, name: str, on_revoke: Callable[[], None], sticky_key: str = "") -> AsyncIterator[Lease]:
        """A lease for the length of an `async with` block; see `AdapterLeases`."""
        held: Any = service("adapters").options(stream=True).hold.remote(name, sticky_key)
        try:
            lease = _value(await anext(held))
            revoked = asyncio.create_task(_when_revoked(held, on_revoke), name=f"lease {lease.key}")
            try:
                yield lease
            finally:
                revoked.cancel()
                await asyncio.wait({revoked})
        finally:
            held.cancel()


async def _when_revoked(held: Any, on_revoke: Callable[[], None]) -> None:
    try:
        await anext(held)
    except (RayActorError, StopAsyncIteration):
        # The adapters service is gone, not the adapter: the engine knows whether it can go on.
        log.warning("the lease of an adapter ended with its service")
        return
    on_revoke()


class HandleGeneration:
    """The generation service as agents use it. Make it with `connect`."""

    def __init__(self, models: Sequence[ModelInfo]) -> None:
        self._models = {info.name: info for info in models}
        self._default = next((info for info in models if info.is_default), None)

    @classmethod
    async def connect(cls) -> HandleGeneration:
        """Waits for the generation service and asks which models it serves."""
        return cls(await service("generation").models.remote())

    async def stream(
        self, spec: GenerationSpec, *, request_id: str, deadline: float | None = None, tenant: str = ""
    ) -> AsyncGenerator[Event]:
        """See `GenerationService.stream`."""
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        gateways: Any = service("generation").options(stream=True)
        events = gateways.events.remote(spec, request_id, remaining, tenant, tracing.outgoing())
        try:
            async for event in events:
                yield _value(event)
        finally:
            events.cancel()

    def model(self, name: str) -> ModelInfo:
        """One model, the default one for an empty name. Raises MODEL_NOT_FOUND."""
        info = self._models.get(name) if name else self._default
        if info is None:
            raise model_not_found(name, sorted(self._models))
        return info


class GatewayPeers:
    """`generation.ports.ExplainingPeers`: all gateways of the fleet, this one among them."""

    async def explain(self, request_id: str, tenant: str) -> Explanation | None:
        """What the first gateway that knows the request says."""
        answers = await service("generation").broadcast("explanation", request_id, tenant).results_async()
        return next((answer for answer in answers if answer is not None), None)


class HandleEmbedder:
    """`agents.ports.Embedder` over the embeddings service."""

    async def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1 of the default model."""
        return _value(await service("embeddings").vectors.remote(list(texts)))


async def known_adapters(model: str) -> dict[str, KnownAdapter]:
    """Adapters of a model that its replicas may be asked for; none before there is an adapters service."""
    if "adapters" not in await asyncio.to_thread(lambda: serve.status().applications):
        return {}
    with suppress(RayActorError):
        return await service("adapters").known.remote(model)
    raise ArgosyError(Reason.STARTING, "the adapters service cannot be asked for its adapters", retry_after_s=1.0)


def _value(answer: T | ArgosyError) -> T:
    if isinstance(answer, ArgosyError):
        raise answer
    return answer
