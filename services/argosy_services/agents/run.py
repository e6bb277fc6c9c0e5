"""One run in this process: a strategy at work, its record, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from argosy_services import metrics, tracing
from argosy_services.agents.budget import BudgetSpentError
from argosy_services.agents.memory import Answer
from argosy_services.agents.store import RunStore, RunTakenError
from argosy_services.agents.strategies import WAYS
from argosy_services.agents.types import Outcome, RunFinished
from argosy_services.agents.work import Context, Work
from argosy_services.errors import ArgosyError, Reason

log = structlog.get_logger("argosy.agents")


class LiveRun:
    """Works on a run until it is finished, cancelled, or stopped with its server. Belongs on one event loop."""

    def __init__(self, context: Context, store: RunStore) -> None:
        self.log = context.log
        self.tenant = context.tenant
        self._context = context
        self._store = store
        self._is_cancelled = False
        self._work: asyncio.Task[Outcome] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, on_end: Callable[[], object]) -> None:
        """Starts or goes on, in tasks of its own: one works, and one notes how that ended. Only the work is ever
        cancelled, or who follows might not learn of the end.
        """
        self._work = asyncio.create_task(self._traced(), name=f"agent run {self.log.run_id}")
        self._task = asyncio.create_task(self._run(self._work), name=f"end of agent run {self.log.run_id}")
        self._task.add_done_callback(lambda _: on_end())

    async def cancel(self) -> None:
        """Ends the run for good; what it holds of the engine is free when this returns."""
        self._is_cancelled = True
        await self.stop()

    async def stop(self) -> None:
        """Ends the work and leaves the run to be resumed."""
        if self._work is None or self._task is None or self._task.done():
            return
        self._work.cancel()
        await asyncio.wait({self._task})

    async def _run(self, work: asyncio.Task[Outcome]) -> None:
        outcome = "failed"
        error: Exception | None = run_stopped(self.log.run_id)
        metrics.AGENT_RUNS_RUNNING.inc()
        try:
            outcome, error = (await work).value, None
        except asyncio.CancelledError:
            outcome = "cancelled"
            if self._is_cancelled:
                error = await self._end_cancelled()
        except RunTakenError:
            error = run_moved(self.log.run_id)
        except Exception as failure:
            error = failure
            await self._interrupt(failure)
        finally:
            metrics.AGENT_RUNS_RUNNING.dec()
            _count(outcome, self._context.meter.seconds)
            self.log.close(error)

    async def _traced(self) -> Outcome:
        attributes = {"gen_ai.operation.name": "invoke_agent", "argosy.agent.run_id": self.log.run_id}
        with tracing.span("invoke_agent", attributes) as span:
            outcome = await self._to_the_end()
            span.set({"argosy.agent.outcome": outcome.value, "argosy.agent.steps": self._context.meter.steps})
        return outcome

    async def _to_the_end(self) -> Outcome:
        if self.log.outcome is not None:
            return self.log.outcome
        work = Work(self._context)
        self._context.meter.start()
        try:
            result = await WAYS[work.spec.strategy].follow(work)
            outcome = result.outcome
            if self.log.answer is None:
                await self.log.record(Answer(work.step, result.text))
        except BudgetSpentError as spent:
            outcome = spent.outcome
        await self._finish(outcome)
        return outcome

    async def _finish(self, outcome: Outcome) -> None:
        meter = self._context.meter
        await self.log.record(RunFinished(outcome, meter.steps, meter.tool_calls, meter.usage, meter.seconds))

    async def _end_cancelled(self) -> ArgosyError | None:
        """Notes that the run's owner ended it. What those who follow get, where that failed."""
        try:
            await self._finish(Outcome.CANCELLED)
        except RunTakenError:
            # It may have come to its own end while it was cancelled.
            return None if self.log.outcome is not None else run_moved(self.log.run_id)
        except ArgosyError as error:
            return error
        return None

    async def _interrupt(self, error: Exception) -> None:
        """Notes why the run does not go on; it can be resumed."""
        known = isinstance(error, ArgosyError)
        if not known:
            log.error("an agent run failed", run_id=self.log.run_id, exc_info=error)
        try:
            note = str(error) if known else "internal error"
            await self._store.interrupt(self.log.run_id, self.log.written, note)
        except ArgosyError as unavailable:
            log.warning("why a run stopped could not be noted", run_id=self.log.run_id, cause=unavailable.message)


def _count(outcome: str, seconds: float) -> None:
    metrics.AGENT_RUNS.labels(outcome=outcome).inc()
    metrics.AGENT_RUN_SECONDS.labels(outcome=outcome).observe(seconds)
    if outcome.endswith("_limit"):
        metrics.AGENT_BUDGET_STOPS.labels(budget=outcome.removesuffix("_limit")).inc()


def run_moved(run_id: str) -> ArgosyError:
    """Another server goes on with the run, or it was ended there."""
    return ArgosyError(
        Reason.RUN_STATE,
        f"run {run_id} goes on at another server or was ended there; follow it with WatchRun",
        run_id=run_id,
        state="moved",
    )


def run_stopped(run_id: str) -> ArgosyError:
    """The server stops; the run can be resumed."""
    return ArgosyError(
        Reason.DRAINING,
        f"the server stops; go on with run {run_id} by ResumeRun once it is back",
        retry_after_s=1.0,
    )
