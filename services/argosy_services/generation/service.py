"""Generation and scoring over the engines of the served models."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from argosy_services import tracing
from argosy_services.engine.base import SequenceRunner, StepOutput
from argosy_services.errors import model_not_found, request_not_found, tokenizer_mismatch
from argosy_services.generation import scoring
from argosy_services.generation.account import Account, Ledger
from argosy_services.generation.answer import ChoiceWriter
from argosy_services.generation.bridge import EngineBridge, Run
from argosy_services.generation.collect import collect
from argosy_services.generation.deadline import until
from argosy_services.generation.describe import described
from argosy_services.generation.explanation import Explanation
from argosy_services.generation.options import check_standing
from argosy_services.generation.pace import Pace
from argosy_services.generation.plan import plan
from argosy_services.generation.ports import ExplainingPeers
from argosy_services.generation.progress import Progress
from argosy_services.generation.types import (
    Event,
    Finished,
    Generation,
    GenerationSpec,
    ModelInfo,
    Origin,
    Scores,
    ScoreSpec,
    StageTimings,
    Started,
    Usage,
)
from argosy_services.leases import AdapterLeases, Lease, adapter_left
from argosy_services.models.types import LocalModel
from argosy_services.tokenization.backend import Tokenizer

# How often a whole answer is looked after while it grows: nobody waits for less than all of it.
_COLLECT_S = 0.25


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, the engine that runs it and its tokenizer."""

    local: LocalModel
    engine: SequenceRunner
    tokenizer: Tokenizer


class GenerationService:
    """Answers requests with the served models. Lives on one event loop; the engines' threads do the work."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        leases: AdapterLeases,
        *,
        pace: Pace | None = None,
        explain_requests: int = 1_000,
        peers: ExplainingPeers | None = None,
    ) -> None:
        """The first of `models` answers requests that name none. `pace` is that of all streams together, `peers` are
        asked to explain requests that were not answered here, of which the last `explain_requests` are kept.
        """
        self._pace = pace or Pace()
        self._models = {served.local.name: served for served in models}
        self._bridges = {name: EngineBridge(served.engine, name) for name, served in self._models.items()}
        self._default = models[0].local.name
        self._leases = leases
        self._numbers = itertools.count(1)
        self._ledger = Ledger(explain_requests)
        self._peers = peers

    def start(self) -> None:
        """Starts the engines; they deliver to the event loop that runs now."""
        for bridge in self._bridges.values():
            bridge.start()

    def close(self) -> None:
        """Stops the engines. Requests in progress end with DRAINING."""
        for bridge in self._bridges.values():
            bridge.close()

    def models(self) -> list[ModelInfo]:
        """The served models."""
        return [self.model(name) for name in self._models]

    def model(self, name: str) -> ModelInfo:
        """One model, the default one for an empty name. Raises MODEL_NOT_FOUND."""
        served = self._served(name)
        return ModelInfo(
            name=served.local.name,
            engine=served.engine.info,
            tokenizer_fingerprint=served.tokenizer.fingerprint,
            model_fingerprint=served.local.fingerprint,
            is_default=served.local.name == self._default,
        )

    def stream(
        self, spec: GenerationSpec, *, request_id: str, deadline: float | None = None, tenant: str = ""
    ) -> AsyncGenerator[Event, None]:
        """Generates for a tenant; the first event is Started, the last one Finished.

        However the iterator ends, by its last event, an error, cancellation, `deadline` (a time of `time.monotonic()`)
        or because it is closed, nothing of the request stays in the engine and its adapter's lease is given back.
        """
        return _one_by_one(self.batches(spec, request_id=request_id, deadline=deadline, tenant=tenant))

    def batches(
        self, spec: GenerationSpec, *, request_id: str, deadline: float | None = None, tenant: str = ""
    ) -> AsyncGenerator[Sequence[Event], None]:
        """As `stream`, but events that are there at the same time come together."""
        return self._batches(spec, self._pace, request_id, deadline, tenant)

    async def _batches(
        self, spec: GenerationSpec, pace: Pace, request_id: str, deadline: float | None, tenant: str
    ) -> AsyncGenerator[Sequence[Event], None]:
        served = self._served(spec.model, spec.tokenizer_fingerprint)
        with self._ledger.account(request_id, tenant, served.local.name, spec.adapter, spec.priority) as account:
            async with until(deadline):
                job = await plan(spec, served.engine, served.tokenizer, self._sequence_id(request_id), tenant)
            account.planned(job.tokenization_s, job.grammar_check_s)
            run = self._bridges[served.local.name].run(deadline, pace)
            async with self._lease(spec.adapter, spec.adapter_sticky_key, run, account) as lease:
                with run:
                    account.follows(run.progress, job.prompt_tokens)
                    for request in job.requests:
                        writer = job.writers[request.id]
                        bound = replace(request, adapter=lease and lease.key)
                        run.submit(bound, writer.read, at_once=writer.may_stop_early)
                    with account.sending():
                        yield (Started(_origin(request_id, served, lease), job.prompt_tokens),)
                    writing = dict(job.writers)
                    while True:
                        events = _advance(await run.next(), writing)
                        if not writing:
                            break
                        with account.sending():
                            yield events
            progress = run.progress.values()
            usage = Usage(
                prompt_tokens=job.prompt_tokens,
                cached_tokens=min(sequence.cached_tokens for sequence in progress),
                completion_tokens=sum(writer.token_count for writer in job.writers.values()),
            )
            if (trace := tracing.here()) is not None:
                trace.set(described(spec, served.local.name, usage, job.writers.values()))
            account.completion_tokens = usage.completion_tokens
            finished = Finished(usage, _timings(progress, job.tokenization_s, account.arrived))
        yield (*events, finished)

    async def generate(
        self, spec: GenerationSpec, *, request_id: str, deadline: float | None = None, tenant: str = ""
    ) -> Generation:
        """Generates and returns the whole answer. Raises what `stream` raises."""
        batches = self._batches(spec, Pace(_COLLECT_S), request_id, deadline, tenant)
        async with aclosing(_one_by_one(batches)) as events:
            return await collect(events)

    async def score(
        self, spec: ScoreSpec, *, request_id: str, deadline: float | None = None, tenant: str = ""
    ) -> Scores:
        """The log-probabilities of continuations. Ends as cleanly as `stream`."""
        served = self._served(spec.model, spec.tokenizer_fingerprint)
        check_standing("", spec.priority, spec.cache_salt)
        with self._ledger.account(request_id, tenant, served.local.name, spec.adapter, spec.priority) as account:
            async with until(deadline):
                with tracing.span("tokenize"):
                    sequences = await scoring.sequences(spec.items, served.tokenizer, served.engine.info)
            account.planned(time.monotonic() - account.arrived)
            run = self._bridges[served.local.name].run(deadline)
            sequence_id = self._sequence_id(request_id)
            async with self._lease(spec.adapter, "", run, account) as lease:
                with run:
                    account.follows(run.progress)
                    requests = [
                        replace(
                            scoring.request(f"{sequence_id}-{index}", *sequence, adapter=lease and lease.key),
                            tenant=tenant,
                            priority=spec.priority,
                            cache_salt=spec.cache_salt,
                            call=sequence_id,
                        )
                        for index, sequence in enumerate(sequences)
                    ]
                    scores = await scoring.run_all(run, requests)
            progress = run.progress.values()
            usage = Usage(
                prompt_tokens=sum(sequence.prompt_tokens for sequence in progress),
                cached_tokens=sum(sequence.cached_tokens for sequence in progress),
            )
            timings = replace(_timings(progress, account.tokenization_s, account.arrived), decode_s=None)
            return Scores(_origin(request_id, served, lease), tuple(scores), usage, timings)

    async def explain(self, request_id: str, tenant: str = "") -> Explanation:
        """Where the time of a request of this tenant went. Raises REQUEST_NOT_FOUND."""
        found = self._ledger.explain(request_id, tenant)
        if found is None and self._peers is not None:
            found = await self._peers.explain(request_id, tenant)
        if found is None:
            raise request_not_found(request_id, self._ledger.keeps)
        return found

    def explain_here(self, request_id: str, tenant: str) -> Explanation | None:
        """What this process knows of a request, for peers."""
        return self._ledger.explain(request_id, tenant)

    def _served(self, name: str, tokenizer_fingerprint: str = "") -> ServedModel:
        served = self._models.get(name or self._default)
        if served is None:
            raise model_not_found(name, sorted(self._models))
        expected = served.tokenizer.fingerprint
        if tokenizer_fingerprint not in ("", expected):
            raise tokenizer_mismatch(served.local.name, expected=expected, value=tokenizer_fingerprint)
        return served

    def _sequence_id(self, request_id: str) -> str:
        # Callers choose request ids and may use one twice; the engine's must be unique.
        return f"{request_id}-{next(self._numbers)}"

    @asynccontextmanager
    async def _lease(self, adapter: str, sticky_key: str, run: Run, account: Account) -> AsyncIterator[Lease | None]:
        if not adapter:
            yield None
            return
        loop, waiting = asyncio.get_running_loop(), asyncio.timeout(None)
        lease: Lease | None = None

        def revoke() -> None:
            run.fail(adapter_left(adapter))
            if lease is None:
                waiting.reschedule(loop.time())

        async with AsyncExitStack() as held:
            with tracing.span("wait for adapter", {"argosy.adapter": adapter}), account.waiting_for_adapter():
                taking = self._leases.lease(adapter, revoke, sticky_key)
                try:
                    async with waiting:
                        lease = await held.enter_async_context(taking)
                except TimeoutError:
                    if not waiting.expired():
                        raise
                    raise adapter_left(adapter) from None
            lease.check_base(account.model)
            account.leased(lease)
            yield lease


async def _one_by_one(batches: AsyncGenerator[Sequence[Event], None]) -> AsyncGenerator[Event, None]:
    async with aclosing(batches):
        async for events in batches:
            for event in events:
                yield event


def _advance(outputs: Sequence[StepOutput], writing: dict[str, ChoiceWriter]) -> list[Event]:
    """What is new of every choice, and the ends of those that are complete, which are taken out of `writing`."""
    events: list[Event] = []
    for request_id in dict.fromkeys(output.request_id for output in outputs):
        writer = writing[request_id]
        events.append(writer.write())
        if writer.finished is not None:
            events.append(writer.finished)
            del writing[request_id]
    return events


def _origin(request_id: str, served: ServedModel, lease: Lease | None) -> Origin:
    if lease is None:
        return Origin(request_id, served.local.name)
    return Origin(request_id, served.local.name, lease.name, lease.version)


def _timings(progress: Collection[Progress], tokenization_s: float, arrived: float) -> StageTimings:
    stages = [sequence.timings for sequence in progress]
    return StageTimings(
        tokenization_s=tokenization_s,
        queue_s=max(stage.queue_s for stage in stages),
        prefill_s=max(stage.prefill_s for stage in stages),
        decode_s=max(stage.decode_s for stage in stages),
        total_s=time.monotonic() - arrived,
    )
