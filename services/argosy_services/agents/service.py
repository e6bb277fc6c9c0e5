"""Runs agents within bounds, and keeps what they did."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress

from argosy_services import metrics, tracing
from argosy_services.agents import limits
from argosy_services.agents.budget import Meter
from argosy_services.agents.ending import end_unattended, steps_in
from argosy_services.agents.ports import ChatModel, Embedder
from argosy_services.agents.prompt import version_of
from argosy_services.agents.run import LiveRun, run_moved
from argosy_services.agents.runlog import RunLog
from argosy_services.agents.store import RunStore, RunTakenError
from argosy_services.agents.strategies import WAYS
from argosy_services.agents.toolbox import Toolbox
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.tools.rates import Rates
from argosy_services.agents.tools.registry import ToolRegistry
from argosy_services.agents.tools.search import PassageSearch
from argosy_services.agents.types import (
    AgentSpec,
    Event,
    Outcome,
    Recorded,
    RunInfo,
    RunResumed,
    RunStarted,
    RunState,
)
from argosy_services.agents.work import Context
from argosy_services.errors import ArgosyError, Reason
from argosy_services.rpc import validate

MAX_RESULT_BYTES = 64 << 10
MAX_REASON_BYTES = 1 << 10

_RETRY_AFTER_S = 1.0
# How often a run that goes on at another server is looked at.
_POLL_S = 0.25


class AgentsService:
    """Agents over one chat model. Belongs on one event loop. `max_running` may be changed at any time."""

    def __init__(
        self,
        model: ChatModel,
        tools: Sequence[Tool],
        store: RunStore,
        *,
        max_running: int,
        embedder: Embedder | None = None,
        toolbox: Toolbox | None = None,
        wait_s: float = 86_400.0,
    ) -> None:
        """`toolbox` has the tools that must be opened first; `wait_s` is how long a run waits for a person or its
        caller. Raises ValueError for tools that cannot stand beside each other.
        """
        self._model = model
        self._registry = ToolRegistry(tools)
        self._store = store
        self.max_running = max_running
        self._embedder = embedder
        self._toolbox = toolbox
        self._wait_s = wait_s
        self._rates = Rates()
        self._live: dict[str, LiveRun] = {}
        self._resuming: dict[str, asyncio.Event] = {}
        self._starting = 0

    async def start(self) -> None:
        """Makes the tables and opens the toolbox. Raises what that raises, and ValueError for names that are taken."""
        await asyncio.to_thread(self._store.prepare)
        if self._toolbox is not None:
            self._registry = ToolRegistry([*self._registry.all(), *await self._toolbox.open()])
        # A counter that is first seen at one has not grown for Prometheus.
        for outcome in Outcome:
            metrics.AGENT_RUNS.labels(outcome=outcome.value)
        for tool in self._registry.all():
            metrics.TOOL_CALLS.labels(tool=tool.name, result="ok")
            metrics.TOOL_SECONDS.labels(tool=tool.name)

    async def close(self) -> None:
        """Stops what runs; all of it can be resumed."""
        await asyncio.gather(*(run.stop() for run in self._live.values()))
        if self._toolbox is not None:
            await self._toolbox.close()

    def tools(self) -> list[Tool]:
        """The tools that runs may use, ordered by name."""
        return self._registry.all()

    async def run(
        self,
        spec: AgentSpec,
        *,
        tenant: str = "",
        detached: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ) -> AsyncGenerator[Recorded]:
        """The events of a tenant's run; one RunFinished last. Closing the iterator cancels the run and frees what it
        holds, unless it is detached or the server is `stopping`: it can be resumed then.

        Raises INVALID_FIELD, INPUT_TOO_LARGE, TOO_MANY_INPUTS, TOOL_NOT_FOUND, MODEL_NOT_FOUND, QUEUE_FULL or
        STORE_UNAVAILABLE before the first event, and what the model raises.
        """
        limits.check(spec)
        # Ordered by the time of their start, which is what lists go by.
        run_id = f"{time.time_ns():016x}{secrets.token_hex(8)}"
        run_log = RunLog(self._store, run_id)
        context = self._context(spec, run_log, tenant)
        started = RunStarted(
            run_id, context.model_name, tuple(context.tools), spec.budget, version_of(WAYS[spec.strategy].prompt)
        )
        with _Place(self):
            now = time.time()
            with tracing.span("write down"):
                await self._store.create(RunInfo(run_id, RunState.RUNNING, spec, now, now), tenant)
            await _first(run_log, started)
            live = self._begin(context)
        async with aclosing(self._attached(live, 0, detached=detached, stopping=stopping)) as events:
            async for one in events:
                yield one

    async def resume(
        self, run_id: str, *, tenant: str = "", detached: bool = False, stopping: Callable[[], bool] = lambda: False
    ) -> AsyncGenerator[Recorded]:
        """Goes on with a run from its last complete step; the events from there on, beginning with RunResumed. A run
        that this server works on already is followed only.

        Raises RUN_NOT_FOUND, RUN_STATE where it is finished or goes on elsewhere, QUEUE_FULL, STORE_UNAVAILABLE and
        what `run` raises.
        """
        info = await self._store.get(run_id, tenant)
        while run_id in self._resuming:
            await self._resuming[run_id].wait()
        if run_id in self._live:
            async with aclosing(self._live[run_id].log.follow(info.events)) as events:
                async for one in events:
                    yield one
            return
        if info.state is RunState.FINISHED:
            raise _wrong_state(info, "is finished; ReplayRun shows it again")
        with _Place(self), self._reserved(run_id):
            recorded = await self._store.events(run_id)
            run_log = RunLog(self._store, run_id, recorded)
            context = self._context(info.spec, run_log, tenant, recorded)
            await _first(run_log, RunResumed(steps_in(recorded)))
            live = self._begin(context)
        async with aclosing(self._attached(live, len(recorded), detached=detached, stopping=stopping)) as events:
            async for one in events:
                yield one

    async def watch(self, run_id: str, after: int, *, tenant: str = "") -> AsyncGenerator[Recorded]:
        """The events of a run behind number `after`, and those to come, until it is finished or stops.

        Raises RUN_NOT_FOUND, and what stopped the run.
        """
        info = await self._store.get(run_id, tenant)
        live = self._live.get(run_id)
        if live is not None:
            async with aclosing(live.log.follow(after)) as events:
                async for one in events:
                    yield one
            return
        while True:
            info = await self._store.get(run_id, tenant)
            for one in await self._store.events(run_id, after=after):
                after = one.sequence
                yield one
            if info.state in (RunState.FINISHED, RunState.INTERRUPTED) or not self._store.shared:
                return
            await asyncio.sleep(_POLL_S)

    async def replay(self, run_id: str, *, tenant: str = "") -> AsyncGenerator[Recorded]:
        """The events that are written down of a run. Raises RUN_NOT_FOUND."""
        await self._store.get(run_id, tenant)
        for one in await self._store.events(run_id):
            yield one

    async def get(self, run_id: str, *, tenant: str = "") -> RunInfo:
        """One run. Raises RUN_NOT_FOUND."""
        return await self._store.get(run_id, tenant)

    async def list(self, *, before: str, limit: int, tenant: str = "") -> list[RunInfo]:
        """Runs from the newest to the oldest, of those that are older than run `before`."""
        return await self._store.list(tenant, before=before, limit=limit)

    async def cancel(self, run_id: str, *, tenant: str = "") -> RunInfo:
        """Ends a run for good; one that is finished stays as it is. What it held of an engine here is free on return.

        Needs neither the tools nor the model of the run. Raises RUN_NOT_FOUND and STORE_UNAVAILABLE.
        """
        await self._store.get(run_id, tenant)
        while True:
            live = self._live.get(run_id)
            if live is not None:
                await live.cancel()
            info = await self._store.get(run_id, tenant)
            if info.state is RunState.FINISHED:
                return info
            if run_id not in self._live:
                # Nobody works on it here. Whoever does elsewhere finds out before its next effect; where that one has
                # just written something, this is done again.
                with suppress(RunTakenError):
                    await end_unattended(self._store, run_id)

    async def decide(self, run_id: str, call_id: str, *, approved: bool, reason: str = "", tenant: str = "") -> None:
        """Allows a call that waits for approval, or refuses it. Raises RUN_NOT_FOUND, or RUN_STATE where no such call
        waits.
        """
        validate.text_size("reason", reason, limit_bytes=MAX_REASON_BYTES)
        info, run_log = await self._record_of(run_id, tenant)
        if call_id not in run_log.asked or call_id in run_log.decided or call_id in run_log.observed:
            raise _wrong_state(info, f"has no call '{call_id[:64]}' that waits for approval")
        await self._leave(info, f"approval/{call_id}", {"approved": approved, "reason": reason})

    async def submit(self, run_id: str, call_id: str, text: str, *, is_error: bool = False, tenant: str = "") -> None:
        """Answers a call of a tool of the caller's. Raises RUN_NOT_FOUND, INPUT_TOO_LARGE, or RUN_STATE where no such
        call waits.
        """
        validate.text_size("result", text, limit_bytes=MAX_RESULT_BYTES)
        info, run_log = await self._record_of(run_id, tenant)
        request = run_log.requested.get(call_id)
        waits = call_id in run_log.started and call_id not in run_log.observed
        if request is None or not request.by_client or not waits:
            raise _wrong_state(info, f"has no call '{call_id[:64]}' that waits for its caller")
        await self._leave(info, f"result/{call_id}", {"text": text, "is_error": is_error, "seconds": 0.0})

    async def _leave(self, info: RunInfo, key: str, body: dict[str, object]) -> None:
        if not await self._store.put_input(info.run_id, key, json.dumps(body)):
            raise _wrong_state(info, f"has been told {key} already")
        live = self._live.get(info.run_id)
        if live is not None:
            live.log.nudge()

    async def _record_of(self, run_id: str, tenant: str) -> tuple[RunInfo, RunLog]:
        info = await self._store.get(run_id, tenant)
        return info, RunLog(self._store, run_id, await self._store.events(run_id))

    def _context(self, spec: AgentSpec, run_log: RunLog, tenant: str, recorded: Sequence[Recorded] = ()) -> Context:
        wanted = WAYS[spec.strategy].uses_tools and (spec.tools or not spec.client_tools)
        tools: list[Tool] = list(self._registry.select(spec.tools)) if wanted else []
        if spec.passages and self._embedder is not None:
            tools.append(PassageSearch(self._embedder, spec.passages))
        by_client = limits.client_tools(spec, tools)
        tools = sorted([*tools, *by_client], key=lambda tool: tool.name)
        limits.check_approvals(spec, tools)
        meter = Meter(spec.budget, recorded[-1].seconds if recorded else 0.0)
        run_log.seconds = lambda: meter.seconds
        return Context(
            model=self._model,
            model_name=self._model.check_model(spec.model),
            spec=spec,
            tools={tool.name: tool for tool in tools},
            meter=meter,
            log=run_log,
            rates=self._rates,
            tenant=tenant,
            by_client=frozenset(tool.name for tool in by_client),
            secrets=() if self._toolbox is None else self._toolbox.secrets(),
            wait_s=self._wait_s,
        )

    def _begin(self, context: Context) -> LiveRun:
        live = LiveRun(context, self._store)
        self._live[live.log.run_id] = live
        live.start(lambda: self._forget(live))
        return live

    def _forget(self, live: LiveRun) -> None:
        if self._live.get(live.log.run_id) is live:
            del self._live[live.log.run_id]

    @contextmanager
    def _reserved(self, run_id: str) -> Iterator[None]:
        """Keeps others from resuming a run before it is seen to be at work. They wait, and follow it then."""
        decided = self._resuming[run_id] = asyncio.Event()
        try:
            yield
        finally:
            del self._resuming[run_id]
            decided.set()

    async def _attached(
        self, live: LiveRun, after: int, *, detached: bool, stopping: Callable[[], bool]
    ) -> AsyncGenerator[Recorded]:
        try:
            async with aclosing(live.log.follow(after)) as events:
                async for one in events:
                    yield one
        finally:
            if not detached:
                await (live.stop() if stopping() else live.cancel())

    @property
    def running(self) -> int:
        """Runs that this server works on."""
        return len(self._live) + self._starting


async def _first(run_log: RunLog, event: Event) -> None:
    """Writes down what a run begins with here. Raises RUN_STATE where it goes on elsewhere or was ended meanwhile."""
    try:
        await run_log.record(event)
    except RunTakenError as error:
        raise run_moved(run_log.run_id) from error


class _Place:
    """One of the runs that a server takes, while it is being made. Raises QUEUE_FULL."""

    def __init__(self, service: AgentsService) -> None:
        self._service = service

    def __enter__(self) -> None:
        service = self._service
        if service.running >= service.max_running:
            raise ArgosyError(
                Reason.QUEUE_FULL,
                f"{service.running} agent runs are in progress, the most that this server takes; retry soon",
                retry_after_s=_RETRY_AFTER_S,
                limit=service.max_running,
                value=service.running,
            )
        service._starting += 1

    def __exit__(self, *_raised: object) -> None:
        self._service._starting -= 1


def _wrong_state(info: RunInfo, problem: str) -> ArgosyError:
    return ArgosyError(Reason.RUN_STATE, f"run {info.run_id} {problem}", run_id=info.run_id, state=info.state.value)
