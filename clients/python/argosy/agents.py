"""Runs agents and follows what they do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from argosy._call import CallPlan
from argosy._caller import AsyncCaller, Caller
from argosy._convert import agents as convert
from argosy._stream import AsyncStream, Stream
from argosy.api.agents.v1 import agents_service_pb2 as rpc
from argosy.api.agents.v1.agents_service_pb2_grpc import AgentsServiceStub
from argosy.types.agents import AgentBudget, AgentEvent, RunFinished, ToolInfo

_DEFAULT_BUDGET = AgentBudget()


class AgentRun(Stream[AgentEvent]):
    """The events of a run as they happen. Closing or dropping it ends the run on the server."""

    _reader: convert.RunReader

    def __init__(self, rpc: Any, request: Any, plan: CallPlan) -> None:
        super().__init__(rpc, request, plan, convert.RunReader())

    @property
    def answer(self) -> str | None:
        """The answer; None until it came, and for good where the budget was used up first."""
        return self._reader.answer

    @property
    def finished(self) -> RunFinished | None:
        """How the run ended; None until then."""
        return self._reader.finished

    def result(self) -> str | None:
        """Reads on to the end and gives the answer; None where the budget was used up first."""
        for _ in self:
            pass
        return self.answer


class AsyncAgentRun(AsyncStream[AgentEvent]):
    """`AgentRun` for asyncio."""

    _reader: convert.RunReader

    def __init__(self, rpc: Any, request: Any, plan: CallPlan) -> None:
        super().__init__(rpc, request, plan, convert.RunReader())

    @property
    def answer(self) -> str | None:
        """The answer; None until it came, and for good where the budget was used up first."""
        return self._reader.answer

    @property
    def finished(self) -> RunFinished | None:
        """How the run ended; None until then."""
        return self._reader.finished

    async def result(self) -> str | None:
        """Reads on to the end and gives the answer; None where the budget was used up first."""
        async for _ in self:
            pass
        return self.answer


class AgentsClient:
    """Agents, as `client.agents`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = AgentsServiceStub(caller.channel)

    def run(
        self,
        task: str,
        *,
        tools: Sequence[str] = (),
        budget: AgentBudget = _DEFAULT_BUDGET,
        model: str = "",
        adapter: str = "",
        temperature: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AgentRun:
        """Runs a task to its end or to its budget; no `tools` means all that the server has.

        `for event in client.agents.run("..."): ...`, or `client.agents.run("...").result()` for the answer alone.
        """
        request = convert.run_request(
            task, tools=tools, budget=budget, model=model, adapter=adapter, temperature=temperature, seed=seed
        )
        return AgentRun(self._stub.RunAgent, request, self._caller.plan(timeout, request_id))

    def list_tools(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> Iterator[ToolInfo]:
        """The tools that runs may use, ordered by name; pages are fetched as they are needed."""

        def fetch(token: str) -> rpc.ListToolsResponse:
            request = rpc.ListToolsRequest(page_size=page_size, page_token=token)
            return self._caller.unary(self._stub.ListTools, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.tool(tool) for tool in page.tools])


class AsyncAgentsClient:
    """Agents for asyncio; each method does what its namesake in `AgentsClient` does."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._caller = caller
        self._stub = AgentsServiceStub(caller.channel)

    def run(
        self,
        task: str,
        *,
        tools: Sequence[str] = (),
        budget: AgentBudget = _DEFAULT_BUDGET,
        model: str = "",
        adapter: str = "",
        temperature: float | None = None,
        seed: int | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncAgentRun:
        """See `AgentsClient.run`; not awaited: `async for event in client.agents.run("..."): ...`"""
        request = convert.run_request(
            task, tools=tools, budget=budget, model=model, adapter=adapter, temperature=temperature, seed=seed
        )
        return AsyncAgentRun(self._stub.RunAgent, request, self._caller.plan(timeout, request_id))

    def list_tools(
        self, *, page_size: int = 0, timeout: float | None = None, request_id: str | None = None
    ) -> AsyncIterator[ToolInfo]:
        """See `AgentsClient.list_tools`."""

        async def fetch(token: str) -> rpc.ListToolsResponse:
            request = rpc.ListToolsRequest(page_size=page_size, page_token=token)
            return await self._caller.unary(self._stub.ListTools, request, timeout=timeout, request_id=request_id)

        return self._caller.pages(fetch, lambda page: [convert.tool(tool) for tool in page.tools])
