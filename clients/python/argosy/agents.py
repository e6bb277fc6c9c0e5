"""Runs agents and follows what they do."""

# ruff: noqa: ASYNC109 - a timeout is part of the call: it travels to the server as its deadline

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from argosy._caller import AsyncCaller, Caller
from argosy._convert import agents as convert
from argosy._convert.agents import RunOptions, RunReader
from argosy._runs import AgentRun, AsyncAgentRun, Desk, Functions, Pending
from argosy._tools import FunctionTool
from argosy.api.agents.v1 import agents_service_pb2 as rpc
from argosy.api.agents.v1.agents_service_pb2_grpc import AgentsServiceStub
from argosy.types.agents import (
    AgentBudget,
    AgentStrategy,
    ApprovalPolicy,
    ChainPrompt,
    RunInfo,
    ToolInfo,
)

_DEFAULT_BUDGET = AgentBudget()


class AgentsClient:
    """Agents, as `client.agents`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = AgentsServiceStub(caller.channel)

    def run(
        self,
        task: str,
        *,
        tools: Sequence[str | FunctionTool | Callable[..., Any]] = (),
        strategy: AgentStrategy | str = AgentStrategy.REACT,
        budget: AgentBudget = _DEFAULT_BUDGET,
        model: str = "",
        adapter: str = "",
        temperature: float | None = None,
        seed: int | None = None,
        votes: int | None = None,
        chain: Sequence[ChainPrompt] = (),
        passages: Sequence[str] = (),
        approval: ApprovalPolicy | None = None,
        tool_required: bool = False,
        detached: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AgentRun:
        """Runs a task to its end or to its budget.

        `for event in client.agents.run("..."): ...`, or `client.agents.run("...").result()` for the answer alone.
        `tools` are names of the server's and functions of the caller's (see `argosy.tool`), which are called while
        events are read; none at all means all that the server has. With `detached` the run outlives this call.
        """
        options = RunOptions(
            tools=tools,
            strategy=strategy,
            budget=budget,
            model=model,
            adapter=adapter,
            temperature=temperature,
            seed=seed,
            votes=votes,
            chain=chain,
            passages=passages,
            approval=approval,
            tool_required=tool_required,
            detached=detached,
        )
        functions = convert.functions_of(tools)
        request = convert.run_request(task, options, functions)
        plan = self._caller.plan(timeout, request_id)
        return AgentRun(self._stub.RunAgent, request, plan, functions=functions, submit=self._submit)

    def resume(
        self,
        run_id: str,
        *,
        tools: Sequence[FunctionTool | Callable[..., Any]] = (),
        detached: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AgentRun:
        """Goes on with a run that was interrupted, from its last complete step.

        `tools` are the caller's own of that run. A call of theirs that was begun is made again where the tool only
        reads, and otherwise told to the model as uncertain.
        """
        functions = convert.functions_of(tools)
        run = AgentRun(
            self._stub.ResumeRun,
            rpc.ResumeRunRequest(run_id=run_id, detached=detached),
            self._caller.plan(timeout, request_id),
            reader=RunReader(run_id),
            functions=functions,
            submit=self._submit,
        )
        run.pending = lambda: self._pending(run_id, functions)
        return run

    def watch(
        self, run_id: str, *, after: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AgentRun:
        """Follows a run behind event number `after`; going away does not end it."""
        request = rpc.WatchRunRequest(run_id=run_id, after=after)
        plan = self._caller.plan(timeout, request_id)
        return AgentRun(self._stub.WatchRun, request, plan, reader=RunReader(run_id, may_stop=True))

    def replay(self, run_id: str, *, timeout: float | None = None, request_id: str | None = None) -> AgentRun:
        """What is written down of a run, once more."""
        request = rpc.ReplayRunRequest(run_id=run_id)
        plan = self._caller.plan(timeout, request_id)
        return AgentRun(self._stub.ReplayRun, request, plan, reader=RunReader(run_id, may_stop=True))

    def get(self, run_id: str, *, timeout: float | None = None, request_id: str | None = None) -> RunInfo:
        """Where a run stands. Raises RunNotFoundError."""
        request = rpc.GetRunRequest(run_id=run_id)
        answer = self._caller.unary(self._stub.GetRun, request, timeout=timeout, request_id=request_id)
        return convert.run_info(answer.run)

    def list(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> Iterator[RunInfo]:
        """The runs that are kept, the newest first; pages are fetched as they are needed."""

        def fetch(token: str) -> rpc.ListRunsResponse:
            request = rpc.ListRunsRequest(page_size=page_size, page_token=token)
            return self._caller.unary(self._stub.ListRuns, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.run_info(run) for run in page.runs])

    def cancel(self, run_id: str, *, timeout: float | None = None, request_id: str | None = None) -> RunInfo:
        """Ends a run for good; one that is finished stays as it is."""
        request = rpc.CancelRunRequest(run_id=run_id)
        answer = self._caller.unary(self._stub.CancelRun, request, timeout=timeout, request_id=request_id)
        return convert.run_info(answer.run)

    def approve(
        self,
        run_id: str,
        call_id: str,
        *,
        approved: bool = True,
        reason: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """Allows a call that waits for a person, or refuses it for a reason that the model is told."""
        request = rpc.ApproveToolCallRequest(run_id=run_id, call_id=call_id, approved=approved, reason=reason)
        self._caller.unary(self._stub.ApproveToolCall, request, timeout=timeout, request_id=request_id)

    def submit_result(
        self,
        run_id: str,
        call_id: str,
        result: str,
        *,
        is_error: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """Answers a call of one of the caller's own tools; `run` does so for functions that it is given."""
        request = rpc.SubmitToolResultRequest(run_id=run_id, call_id=call_id, result=result, is_error=is_error)
        self._caller.unary(self._stub.SubmitToolResult, request, timeout=timeout, request_id=request_id)

    def list_tools(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> Iterator[ToolInfo]:
        """The tools that runs may use, ordered by name; pages are fetched as they are needed."""

        def fetch(token: str) -> rpc.ListToolsResponse:
            request = rpc.ListToolsRequest(page_size=page_size, page_token=token)
            return self._caller.unary(self._stub.ListTools, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.tool(tool) for tool in page.tools])

    def _submit(self, run_id: str, call_id: str, result: str, is_error: bool) -> None:
        self.submit_result(run_id, call_id, result, is_error=is_error)

    def _pending(self, run_id: str, functions: Functions) -> Pending:
        return Desk(functions).left_over(list(self.replay(run_id)))


class AsyncAgentsClient:
    """Agents for asyncio; each method does what its namesake in `AgentsClient` does."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self._stub = AgentsServiceStub(caller.channel)

    def run(
        self,
        task: str,
        *,
        tools: Sequence[str | FunctionTool | Callable[..., Any]] = (),
        strategy: AgentStrategy | str = AgentStrategy.REACT,
        budget: AgentBudget = _DEFAULT_BUDGET,
        model: str = "",
        adapter: str = "",
        temperature: float | None = None,
        seed: int | None = None,
        votes: int | None = None,
        chain: Sequence[ChainPrompt] = (),
        passages: Sequence[str] = (),
        approval: ApprovalPolicy | None = None,
        tool_required: bool = False,
        detached: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncAgentRun:
        """See `AgentsClient.run`; not awaited: `async for event in client.agents.run("..."): ...`"""
        options = RunOptions(
            tools=tools,
            strategy=strategy,
            budget=budget,
            model=model,
            adapter=adapter,
            temperature=temperature,
            seed=seed,
            votes=votes,
            chain=chain,
            passages=passages,
            approval=approval,
            tool_required=tool_required,
            detached=detached,
        )
        functions = convert.functions_of(tools)
        request = convert.run_request(task, options, functions)
        plan = self._caller.plan(timeout, request_id)
        return AsyncAgentRun(self._stub.RunAgent, request, plan, functions=functions, submit=self._submit)

    def resume(
        self,
        run_id: str,
        *,
        tools: Sequence[FunctionTool | Callable[..., Any]] = (),
        detached: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncAgentRun:
        """See `AgentsClient.resume`."""
        functions = convert.functions_of(tools)
        run = AsyncAgentRun(
            self._stub.ResumeRun,
            rpc.ResumeRunRequest(run_id=run_id, detached=detached),
            self._caller.plan(timeout, request_id),
            reader=RunReader(run_id),
            functions=functions,
            submit=self._submit,
        )
        run.pending = lambda: self._pending(run_id, functions)
        return run

    def watch(
        self, run_id: str, *, after: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncAgentRun:
        """See `AgentsClient.watch`."""
        request = rpc.WatchRunRequest(run_id=run_id, after=after)
        plan = self._caller.plan(timeout, request_id)
        return AsyncAgentRun(self._stub.WatchRun, request, plan, reader=RunReader(run_id, may_stop=True))

    def replay(self, run_id: str, *, timeout: float | None = None, request_id: str | None = None) -> AsyncAgentRun:
        """See `AgentsClient.replay`."""
        request = rpc.ReplayRunRequest(run_id=run_id)
        plan = self._caller.plan(timeout, request_id)
        return AsyncAgentRun(self._stub.ReplayRun, request, plan, reader=RunReader(run_id, may_stop=True))

    async def get(self, run_id: str, *, timeout: float | None = None, request_id: str | None = None) -> RunInfo:
        """See `AgentsClient.get`."""
        request = rpc.GetRunRequest(run_id=run_id)
        answer = await self._caller.unary(self._stub.GetRun, request, timeout=timeout, request_id=request_id)
        return convert.run_info(answer.run)

    def list(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[RunInfo]:
        """See `AgentsClient.list`."""

        async def fetch(token: str) -> rpc.ListRunsResponse:
            request = rpc.ListRunsRequest(page_size=page_size, page_token=token)
            return await self._caller.unary(self._stub.ListRuns, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.run_info(run) for run in page.runs])

    async def cancel(self, run_id: str, *, timeout: float | None = None, request_id: str | None = None) -> RunInfo:
        """See `AgentsClient.cancel`."""
        request = rpc.CancelRunRequest(run_id=run_id)
        answer = await self._caller.unary(self._stub.CancelRun, request, timeout=timeout, request_id=request_id)
        return convert.run_info(answer.run)

    async def approve(
        self,
        run_id: str,
        call_id: str,
        *,
        approved: bool = True,
        reason: str = "",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """See `AgentsClient.approve`."""
        request = rpc.ApproveToolCallRequest(run_id=run_id, call_id=call_id, approved=approved, reason=reason)
        await self._caller.unary(self._stub.ApproveToolCall, request, timeout=timeout, request_id=request_id)

    async def submit_result(
        self,
        run_id: str,
        call_id: str,
        result: str,
        *,
        is_error: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """See `AgentsClient.submit_result`."""
        request = rpc.SubmitToolResultRequest(run_id=run_id, call_id=call_id, result=result, is_error=is_error)
        await self._caller.unary(self._stub.SubmitToolResult, request, timeout=timeout, request_id=request_id)

    def list_tools(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[ToolInfo]:
        """See `AgentsClient.list_tools`."""

        async def fetch(token: str) -> rpc.ListToolsResponse:
            request = rpc.ListToolsRequest(page_size=page_size, page_token=token)
            return await self._caller.unary(self._stub.ListTools, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.tool(tool) for tool in page.tools])

    async def _submit(self, run_id: str, call_id: str, result: str, is_error: bool) -> None:
        await self.submit_result(run_id, call_id, result, is_error=is_error)

    async def _pending(self, run_id: str, functions: Functions) -> Pending:
        return Desk(functions).left_over([event async for event in self.replay(run_id)])
