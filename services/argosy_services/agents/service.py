"""Runs agents within bounds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from argosy_services import metrics
from argosy_services.agents.loop import Run
from argosy_services.agents.ports import ChatModel
from argosy_services.agents.prompt import load_prompt
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.tools.registry import ToolRegistry
from argosy_services.agents.types import AgentSpec, Event, RunFinished
from argosy_services.errors import ArgosyError, Reason, invalid_field
from argosy_services.rpc import validate

MAX_TASK_BYTES = 64 << 10
MAX_STEPS = 64
MAX_TOKENS = 131_072
MAX_SECONDS = 3_600.0
MAX_TEMPERATURE = 100.0

_RETRY_AFTER_S = 1.0


class AgentsService:
    """Agents over one chat model. Belongs on one event loop. `max_running` may be changed at any time."""

    def __init__(self, model: ChatModel, tools: Sequence[Tool], max_running: int) -> None:
        """Raises ValueError for tools that cannot stand beside each other."""
        self._model = model
        self._tools = ToolRegistry(tools)
        self.max_running = max_running
        self._running = 0
        self._prompt = load_prompt("react")

    def tools(self) -> list[Tool]:
        """The tools that runs may use, ordered by name."""
        return self._tools.all()

    async def run(self, spec: AgentSpec, *, tenant: str = "") -> AsyncGenerator[Event]:
        """The events of a tenant's run; one RunFinished last. Closing the iterator ends the run and what it holds.

        Raises INVALID_FIELD, INPUT_TOO_LARGE, TOOL_NOT_FOUND, MODEL_NOT_FOUND or QUEUE_FULL before the first event, and
        what the model raises.
        """
        _check(spec)
        tools = self._tools.select(spec.tools)
        run = Run(self._model, self._prompt, tools, spec, run_id=uuid.uuid4().hex, tenant=tenant)
        self._admit()
        outcome = "failed"
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    if isinstance(event, RunFinished):
                        outcome = event.outcome.value
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled" if outcome == "failed" else outcome
            raise
        finally:
            self._running -= 1
            metrics.AGENT_RUNS.labels(outcome=outcome).inc()

    def _admit(self) -> None:
        if self._running >= self.max_running:
            raise ArgosyError(
                Reason.QUEUE_FULL,
                f"{self._running} agent runs are in progress, the most that this server takes; retry soon",
                retry_after_s=_RETRY_AFTER_S,
                limit=self.max_running,
                value=self._running,
            )
        self._running += 1


def _check(spec: AgentSpec) -> None:
    """Raises INVALID_FIELD or INPUT_TOO_LARGE."""
    if not spec.task.strip():
        raise invalid_field("spec.task", "must not be empty", limit="at least 1 byte", value=len(spec.task.encode()))
    validate.text_size("spec.task", spec.task, limit_bytes=MAX_TASK_BYTES)
    budget = spec.budget
    validate.number("spec.budget.max_steps", budget.max_steps, low=1, high=MAX_STEPS)
    validate.number("spec.budget.max_tokens", budget.max_tokens, low=1, high=MAX_TOKENS)
    validate.number("spec.budget.max_duration", budget.max_seconds, low=0, high=MAX_SECONDS, above_low=True)
    validate.number("spec.temperature", spec.temperature, low=0, high=MAX_TEMPERATURE)
