"""The typed steps that every strategy is made of: a step, a completion, calls of tools.

Each completion and each call has a key that depends on its place in the program alone. What is recorded under a key is
not done again but read from the record, so a strategy that is run from its beginning once more comes to where it was
(the idea of durable execution, as in Temporal). A strategy must therefore depend on nothing but the results of its
steps.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from argosy_services import metrics, tracing
from argosy_services.agents.budget import BudgetSpentError, Meter
from argosy_services.agents.data import as_data
from argosy_services.agents.memory import Observation, ToolRequest
from argosy_services.agents.ports import ChatModel, Chunk, Completion
from argosy_services.agents.runlog import RunLog
from argosy_services.agents.together import together
from argosy_services.agents.tools.base import (
    Effect,
    InvalidArgumentsError,
    Tool,
    ToolResult,
    call,
    shortened,
)
from argosy_services.agents.tools.rates import Rates
from argosy_services.agents.types import (
    AgentSpec,
    ApprovalDecided,
    ApprovalRequested,
    ModelReplied,
    Outcome,
    ThoughtDelta,
    ToolStarted,
    Usage,
)
from argosy_services.engine.base import Grammar
from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.types import ChatMessage
from argosy_services.tokenization.types import Tool as ToolSchema

# Seeds of branches lie this far apart, more than one branch has completions.
_SEEDS_APART = 1 << 20

# So long a run waits before it asks a model again that had no room and did not say when it will.
_NO_ROOM_S = 1.0

_UNKNOWN = (
    "the server stopped while this call was made: it may or may not have taken effect, and is not made again; "
    "find out before you go on"
)
_TASK_SPENT = "nothing is left of the budget for this"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a strategy wants written: at most `most` tokens. With `shown` they are events as they come."""

    messages: Sequence[ChatMessage]
    most: int
    prefix: str = ""
    form: Grammar | None = None
    tools: Sequence[ToolSchema] = ()
    stop: Sequence[str] = ()
    temperature: float | None = None
    shown: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants to be called."""

    tool: str
    arguments: Mapping[str, object]


@dataclass(slots=True)
class Context:
    """What all parts of one run share. `by_client` are the tools that the caller carries out, `secrets` texts that no
    prompt may hold, `wait_s` is how long a call waits for somebody outside.
    """

    model: ChatModel
    model_name: str
    spec: AgentSpec
    tools: Mapping[str, Tool]
    meter: Meter
    log: RunLog
    rates: Rates
    tenant: str = ""
    by_client: frozenset[str] = frozenset()
    secrets: Sequence[str] = ()
    wait_s: float = 86_400.0


@runtime_checkable
class Nested(Protocol):
    """A tool whose work is part of the run: it gets steps of its own, within the same budget."""

    async def solve(self, work: Work, arguments: Any) -> str:
        """What came of it. Raises ToolError."""
        ...


class Work:
    """The steps of one run, or of a branch of it that runs beside others."""

    def __init__(self, context: Context, key: str = "", seed_offset: int = 0) -> None:
        self.context = context
        self.step = 0
        self._key = key
        self._seed_offset = seed_offset
        self._completions = 0
        self._calls = 0
        self._branches = 0
        self._last_step = self.spec.budget.max_steps

    @property
    def spec(self) -> AgentSpec:
        """What the run was asked for."""
        return self.context.spec

    @property
    def tools(self) -> list[Tool]:
        """The tools of the run, ordered by name."""
        return list(self.context.tools.values())

    @property
    def must_answer(self) -> bool:
        """Whether nothing is left of the budget for another call and what comes of it."""
        return self.steps_left <= 0 or self.calls_at_once <= 0

    @property
    def steps_left(self) -> int:
        """Steps that may still begin."""
        return min(self.spec.budget.max_steps, self._last_step) - self.context.meter.steps

    @property
    def calls_at_once(self) -> int:
        """Calls that may still be made."""
        return self.context.meter.calls_left

    @property
    def announces_tools(self) -> bool:
        """Whether the model's chat template has a place for tools."""
        return self.context.model.announces_tools(self.context.model_name)

    def branch(self, *, steps: int | None = None) -> Work:
        """Steps that may run beside others; those of one branch come one after the other. There are at most `steps`
        from now on.
        """
        self._branches += 1
        offset = self._seed_offset + self._branches * _SEEDS_APART
        inner = Work(self.context, f"{self._key}{self._branches}.", offset)
        inner.step = self.step
        inner._last_step = self._last_step if steps is None else self.context.meter.steps + steps
        return inner

    @asynccontextmanager
    async def stepping(self) -> AsyncIterator[int]:
        """One step, with its number from 1. Raises BudgetSpentError where none is left."""
        self.context.meter.check()
        if self.steps_left <= 0:
            raise BudgetSpentError(Outcome.STEP_LIMIT)
        self.step = self.context.meter.begin_step()
        metrics.AGENT_STEPS.inc()
        with tracing.span("step", {"argosy.agent.step": self.step}):
            yield self.step

    async def write(self, ask: Ask) -> ModelReplied:
        """What the model writes. Raises BudgetSpentError, and what the model raises."""
        self._completions += 1
        key = f"{self._key}{self._completions}"
        reply = self.context.log.replies.get(key)
        if reply is None:
            async with self.context.meter.reserved(ask.most) as granted:
                reply = await self._complete(self._completion(ask, granted), shown=ask.shown)
                self.context.meter.charge(reply.usage)
            await self.context.log.record(reply, key)
        else:
            self.context.meter.charge(reply.usage)
        return reply

    async def use(self, calls: Sequence[ToolCall]) -> list[tuple[ToolRequest, Observation]]:
        """Makes calls side by side; what came of each, in the order of `calls`.

        Raises BudgetSpentError and what a tool's fault raises.
        """
        requests = [self._request(one) for one in calls]
        for _ in requests:
            self.context.meter.begin_call()
        # For what is nested in a call, also where the record holds its result: keys must not move.
        branches = [self.branch() for _ in requests]
        if len(requests) == 1:
            return [(requests[0], await self._use(requests[0], branches[0]))]
        async with together(BudgetSpentError) as group:
            tasks = [
                group.create_task(self._use(request, branch))
                for request, branch in zip(requests, branches, strict=True)
            ]
        return [(request, task.result()) for request, task in zip(requests, tasks, strict=True)]

    def _request(self, one: ToolCall) -> ToolRequest:
        self._calls += 1
        tool = self.context.tools[one.tool]
        by_client = one.tool in self.context.by_client
        return ToolRequest(self.step, f"call_{self._key}{self._calls}", one.tool, one.arguments, tool.effect, by_client)

    async def _use(self, request: ToolRequest, inner: Work) -> Observation:
        """From the wish to the result, from where the record ends."""
        log, call_id = self.context.log, request.call_id
        if call_id in log.observed:
            return log.observed[call_id]
        if call_id not in log.requested:
            await log.record(request)
        refusal = await self._approve(request)
        if refusal is not None:
            return await self._observe(request, ToolResult(refusal, "refused", 0.0))
        with tracing.span(f"execute_tool {request.tool}", _attributes(request)) as span:
            result = await self._carry_out(request, inner)
            span.set({"argosy.tool.result": result.status})
        return await self._observe(request, result)

    async def _approve(self, request: ToolRequest) -> str | None:
        """Waits for a person where one must be asked; why not, where the call was refused."""
        log, call_id = self.context.log, request.call_id
        if not self._needs_approval(request):
            return None
        if call_id not in log.asked:
            await log.record(ApprovalRequested(request.step, call_id))
        if call_id not in log.decided:
            given = await self._await_input(f"approval/{call_id}") or {"approved": False, "reason": "nobody decided"}
            await log.record(ApprovalDecided(request.step, call_id, given["approved"], given["reason"]))
        decision = log.decided[call_id]
        return (
            None if decision.approved else f"the call was refused by a person: {decision.reason or 'no reason given'}"
        )

    def _needs_approval(self, request: ToolRequest) -> bool:
        spec, tool = self.spec, self.context.tools[request.tool]
        by_effect = spec.approve_writes and request.effect is Effect.WRITE
        return tool.needs_approval or by_effect or request.tool in spec.approve_tools

    async def _carry_out(self, request: ToolRequest, inner: Work) -> ToolResult:
        context, tool = self.context, self.context.tools[request.tool]
        if request.by_client:
            if request.call_id not in context.log.started:
                await context.log.record(ToolStarted(request.step, request.call_id))
            given = await self._await_input(f"result/{request.call_id}")
            if given is None:
                return ToolResult(f"nobody answered this call within {context.wait_s:g} s", "timeout", context.wait_s)
            return ToolResult(given["text"], "error" if given["is_error"] else "ok", given["seconds"])
        if isinstance(tool, Nested):
            return await self._solve(tool, request, inner)
        wait_s = context.rates.wait_for(tool.name, tool.per_minute)
        if wait_s:
            return ToolResult(f"{tool.name} has been called too often; there is room in {wait_s:.0f} s", "rate", 0.0)
        if tool.effect is Effect.WRITE:
            if request.call_id in context.log.started:
                return ToolResult(_UNKNOWN, "unknown", 0.0)
            await context.log.record(ToolStarted(request.step, request.call_id))
        return await call(tool, request.arguments, at_most_s=context.meter.seconds_left())

    async def _await_input(self, key: str) -> Mapping[str, Any] | None:
        """What somebody outside leaves for the run; None where nobody did in time."""
        with self.context.meter.paused():
            try:
                async with asyncio.timeout(self.context.wait_s):
                    given: Mapping[str, Any] = json.loads(await self.context.log.input(key))
            except TimeoutError:
                return None
        return given

    async def _solve(self, tool: Nested, request: ToolRequest, inner: Work) -> ToolResult:
        before = self.context.meter.seconds
        try:
            text, status = await tool.solve(inner, request.arguments), "ok"
        except InvalidArgumentsError as error:
            text, status = str(error), "invalid"
        except BudgetSpentError as spent:
            if spent.outcome is not Outcome.STEP_LIMIT:
                raise
            text, status = _TASK_SPENT, "error"
        return ToolResult(text, status, self.context.meter.seconds - before)

    async def _observe(self, request: ToolRequest, result: ToolResult) -> Observation:
        tool = "client" if request.by_client else request.tool
        metrics.TOOL_CALLS.labels(tool=tool, result=result.status).inc()
        metrics.TOOL_SECONDS.labels(tool=tool).observe(result.seconds)
        # Cut last, or a secret across the cut would not be recognized.
        text = shortened(_redacted(result.text, self.context.secrets))
        if request.by_client or not self.context.tools[request.tool].trusted:
            text = as_data(text)
        observation = Observation(request.step, request.call_id, text, result.is_error, result.seconds)
        await self.context.log.record(observation)
        return observation

    async def _complete(self, completion: Completion, *, shown: bool) -> ModelReplied:
        """Has the model write; where it has no room now, the run waits for it as long as it has time."""
        while True:
            try:
                return await self._write(completion, shown=shown)
            except ArgosyError as error:
                if error.reason is not Reason.QUEUE_FULL:
                    raise
                await self.context.meter.in_time(asyncio.sleep(error.retry_after_s or _NO_ROOM_S))

    async def _write(self, completion: Completion, *, shown: bool) -> ModelReplied:
        text, last = "", Chunk("")
        async with self._completing(completion) as chunks:
            while not last.finished:
                last = await self.context.meter.in_time(anext(chunks))
                new = last.text if text or not shown else last.text.lstrip()
                text += new
                if shown and new:
                    self.context.log.show(ThoughtDelta(self.step, new))
        usage = Usage(last.prompt_tokens, last.cached_tokens, last.completion_tokens)
        return ModelReplied(self.step, text, usage, last.stopped_at_length)

    @asynccontextmanager
    async def _completing(self, completion: Completion) -> AsyncIterator[AsyncIterator[Chunk]]:
        with tracing.span(f"chat {completion.model}"):
            async with aclosing(cast(Any, self.context.model.complete(completion))) as chunks:
                yield chunks

    def _completion(self, ask: Ask, granted: int) -> Completion:
        spec, seed = self.spec, self.spec.seed
        return Completion(
            messages=ask.messages,
            prefix=ask.prefix,
            max_tokens=granted,
            form=ask.form,
            tools=ask.tools,
            stop=ask.stop,
            temperature=spec.temperature if ask.temperature is None else ask.temperature,
            # Another one for each completion, or the same draws would come again and again.
            seed=None if seed is None else (seed + self._seed_offset + self._completions) % 2**64,
            model=self.context.model_name,
            adapter=spec.adapter,
            deadline=self.context.meter.deadline,
            tenant=self.context.tenant,
        )


def _attributes(request: ToolRequest) -> dict[str, str]:
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": request.tool,
        "gen_ai.tool.call.id": request.call_id,
    }


def _redacted(text: str, secrets: Sequence[str]) -> str:
    # The longest first: one may begin with another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return text
