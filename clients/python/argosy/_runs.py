"""The streams of runs, and the caller's own tools answered along the way."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from argosy._call import CallPlan
from argosy._convert import agents as convert
from argosy._stream import AsyncStream, Stream
from argosy._tools import FunctionTool
from argosy.types.agents import (
    AgentEvent,
    RunFinished,
    RunResumed,
    ToolEffect,
    ToolRequested,
    ToolReturned,
    ToolStarted,
)

Functions = Mapping[str, FunctionTool]
Submit = Callable[[str, str, str, bool], Any]
"""Sends the answer of a call: run, call, text, whether it failed. Awaited in the client for asyncio."""
Pending = list[tuple[FunctionTool, ToolRequested]]

_UNKNOWN = "the caller was interrupted during this call: it may or may not have taken effect, and is not made again"


class Desk:
    """The calls of a run that its caller has to answer, without any I/O."""

    def __init__(self, functions: Functions) -> None:
        self.run_id = ""
        self._functions = functions
        self._open: dict[str, ToolRequested] = {}

    def see(self, event: AgentEvent) -> tuple[FunctionTool, ToolRequested] | None:
        """The call that an event makes due, if it does."""
        match event:
            case ToolRequested(by_client=True):
                self._open[event.call_id] = event
            case ToolReturned():
                self._open.pop(event.call_id, None)
            case ToolStarted():
                request = self._open.get(event.call_id)
                function = None if request is None else self._functions.get(request.tool)
                return None if function is None or request is None else (function, request)
        return None

    def left_over(self, recorded: list[AgentEvent]) -> Pending:
        """The calls that an interrupted run still waits for, as its record says."""
        due: dict[str, tuple[FunctionTool, ToolRequested]] = {}
        for event in recorded:
            found = self.see(event)
            if found is not None:
                due[found[1].call_id] = found
        return [due[call_id] for call_id in due if call_id in self._open]


def as_text(result: Any) -> str:
    """What a function returned, for a model."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def failure(error: Exception) -> str:
    """What a function raised, for a model."""
    return f"{type(error).__name__}: {error}"


class _Read:
    """What has been read of a run."""

    _reader: convert.RunReader

    @property
    def run_id(self) -> str:
        """Identifies the run; empty until its first event came."""
        return self._reader.run_id

    @property
    def answer(self) -> str | None:
        """The answer; None until it came, and for good where the budget was used up first."""
        return self._reader.answer

    @property
    def finished(self) -> RunFinished | None:
        """How the run ended; None until then."""
        return self._reader.finished


class AgentRun(_Read, Stream[AgentEvent]):
    """The events of a run as they happen. The caller's own tools are called while events are read, and a failure of one
    goes back to the model. Closing or dropping it ends the run on the server, unless the run is detached or watched.
    """

    def __init__(
        self,
        rpc: Any,
        request: Any,
        plan: CallPlan,
        *,
        reader: convert.RunReader | None = None,
        functions: Functions | None = None,
        submit: Submit | None = None,
    ) -> None:
        super().__init__(rpc, request, plan, reader or convert.RunReader())
        self._desk = Desk(functions or {})
        self._submit = submit
        # What a run that is resumed still waits for; set by the client.
        self.pending: Callable[[], Pending] | None = None

    def __next__(self) -> AgentEvent:
        event = super().__next__()
        if isinstance(event, RunResumed) and self.pending is not None:
            for left in self.pending():
                self._answer(*left, again=True)
        due = self._desk.see(event)
        if due is not None and self._submit is not None:
            self._answer(*due)
        return event

    def result(self) -> str | None:
        """Reads on to the end and gives the answer; None where the budget was used up first."""
        for _ in self:
            pass
        return self.answer

    def _answer(self, tool: FunctionTool, request: ToolRequested, *, again: bool = False) -> None:
        text, is_error = _UNKNOWN, True
        if not (again and tool.effect is ToolEffect.WRITE):
            try:
                text, is_error = as_text(tool.function(**request.arguments)), False
            except Exception as error:
                text = failure(error)
        if self._submit is not None:
            self._submit(self.run_id, request.call_id, text, is_error)


class AsyncAgentRun(_Read, AsyncStream[AgentEvent]):
    """`AgentRun` for asyncio; a tool may be a coroutine function."""

    def __init__(
        self,
        rpc: Any,
        request: Any,
        plan: CallPlan,
        *,
        reader: convert.RunReader | None = None,
        functions: Functions | None = None,
        submit: Submit | None = None,
    ) -> None:
        super().__init__(rpc, request, plan, reader or convert.RunReader())
        self._desk = Desk(functions or {})
        self._submit = submit
        # What a run that is resumed still waits for; set by the client.
        self.pending: Callable[[], Awaitable[Pending]] | None = None

    async def __anext__(self) -> AgentEvent:
        event = await super().__anext__()
        if isinstance(event, RunResumed) and self.pending is not None:
            for left in await self.pending():
                await self._answer(*left, again=True)
        due = self._desk.see(event)
        if due is not None and self._submit is not None:
            await self._answer(*due)
        return event

    async def result(self) -> str | None:
        """Reads on to the end and gives the answer; None where the budget was used up first."""
        async for _ in self:
            pass
        return self.answer

    async def _answer(self, tool: FunctionTool, request: ToolRequested, *, again: bool = False) -> None:
        text, is_error = _UNKNOWN, True
        if not (again and tool.effect is ToolEffect.WRITE):
            try:
                given = tool.function(**request.arguments)
                text, is_error = as_text(await given if inspect.isawaitable(given) else given), False
            except Exception as error:
                text = failure(error)
        if self._submit is not None:
            await self._submit(self.run_id, request.call_id, text, is_error)
