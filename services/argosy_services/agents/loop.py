"""The loop of an agent: thought, action and observation in turn, until the answer (Yao et al., "ReAct", 2022).

Made for very small models. The thought is one short line of free text; it serves the model, which chooses better after
having named what it needs. The action is generated under a JSON schema that holds exactly the tools of the run, so it
always is a call that can be carried out. Only the answer is offered in the last step of the budget, and to a model
that would do again what it has done.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from argosy_services import metrics, tracing
from argosy_services.agents.actions import action_schema, parse_action
from argosy_services.agents.budget import BudgetSpentError, Meter
from argosy_services.agents.memory import Answer, Memory, Observation, Thought, ToolRequest
from argosy_services.agents.ports import ChatModel, Chunk, Completion
from argosy_services.agents.prompt import Prompt
from argosy_services.agents.tools.base import Tool, call
from argosy_services.agents.types import AgentSpec, Event, Outcome, RunFinished, RunStarted, ThoughtDelta

MAX_THOUGHT_TOKENS = 40
# Above what the longest answer needs in most languages; it keeps the request below the context of small models.
MAX_ACTION_TOKENS = 640


class Run:
    """One run. Its events can be read once."""

    def __init__(
        self, model: ChatModel, prompt: Prompt, tools: Sequence[Tool], spec: AgentSpec, *, run_id: str, tenant: str = ""
    ) -> None:
        """`tools` are those of the run, sorted by name. Raises MODEL_NOT_FOUND."""
        self._model = model
        self._tools = {tool.name: tool for tool in tools}
        self._spec = spec
        self._started = RunStarted(run_id, model.check_model(spec.model), tuple(self._tools), spec.budget)
        self._tenant = tenant
        self._memory = Memory(prompt, spec.task, tools)
        self._completions = 0
        self._steps = 0
        self._calls = 0

    async def events(self) -> AsyncGenerator[Event]:
        """Everything that happens, as it happens; one RunFinished last. Closing it ends the model's work at once.

        Raises ArgosyError where the model refuses or fails.
        """
        self._meter = Meter(self._spec.budget)
        attributes = {"gen_ai.operation.name": "invoke_agent", "argosy.agent.run_id": self._started.run_id}
        with tracing.span("invoke_agent", attributes) as span:
            yield self._started
            outcome = Outcome.ANSWERED
            try:
                async with aclosing(self._work()) as events:
                    async for event in events:
                        yield event
                        if isinstance(event, Answer):
                            outcome = self._outcome()
            except BudgetSpentError as spent:
                outcome = spent.outcome
            span.set({"argosy.agent.outcome": outcome.value, "argosy.agent.steps": self._steps})
            yield RunFinished(outcome, self._steps, self._calls, self._meter.usage, self._meter.seconds)

    async def _work(self) -> AsyncGenerator[ThoughtDelta | ToolRequest | Observation | Answer]:
        while True:
            self._meter.check()
            self._steps += 1
            metrics.AGENT_STEPS.inc()
            with tracing.span("step", {"argosy.agent.step": self._steps}):
                async with aclosing(self._think()) as deltas:
                    async for delta in deltas:
                        yield delta
                action = await self._act()
                self._memory.add(action)
                yield action
                if isinstance(action, Answer):
                    return
                observation = await self._use(action)
                self._memory.add(observation)
                yield observation

    async def _think(self) -> AsyncGenerator[ThoughtDelta]:
        thought = ""
        completion = self._completion(MAX_THOUGHT_TOKENS, stop=("\n",))
        async with aclosing(self._write(completion)) as chunks:
            async for chunk in chunks:
                text = chunk.text if thought else chunk.text.lstrip()
                thought += text
                if text:
                    yield ThoughtDelta(self._steps, text)
        self._memory.add(Thought(self._steps, thought.strip()))

    async def _act(self) -> ToolRequest | Answer:
        action = await self._choose([] if self._is_last else list(self._tools.values()))
        if isinstance(action, ToolRequest) and self._memory.repeats(action):
            # Small models like to go round in circles; they have what they need.
            return await self._choose([])
        return action

    async def _choose(self, tools: Sequence[Tool]) -> ToolRequest | Answer:
        completion = self._completion(MAX_ACTION_TOKENS, json_schema=action_schema(tools))
        text = ""
        async with aclosing(self._write(completion)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                if chunk.stopped_at_length:
                    raise BudgetSpentError(Outcome.TOKEN_LIMIT)
        return parse_action(text, step=self._steps, call_id=f"call_{self._calls + 1}", tools=tools)

    async def _use(self, request: ToolRequest) -> Observation:
        self._calls += 1
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": request.tool,
            "gen_ai.tool.call.id": request.call_id,
        }
        with tracing.span(f"execute_tool {request.tool}", attributes) as span:
            result = await call(self._tools[request.tool], request.arguments, at_most_s=self._meter.seconds_left())
            span.set({"argosy.tool.result": result.status})
        metrics.TOOL_CALLS.labels(tool=request.tool, result=result.status).inc()
        return Observation(request.step, request.call_id, result.text, result.is_error, result.seconds)

    async def _write(self, completion: Completion) -> AsyncGenerator[Chunk]:
        async with self._completing(completion) as chunks:
            while True:
                chunk = await self._meter.in_time(anext(chunks))
                if chunk.finished:
                    self._meter.charge(chunk)
                yield chunk
                if chunk.finished:
                    return

    @asynccontextmanager
    async def _completing(self, completion: Completion) -> AsyncIterator[AsyncIterator[Chunk]]:
        with tracing.span(f"chat {completion.model}"):
            async with aclosing(self._model.complete(completion)) as chunks:  # type: ignore[type-var]
                yield chunks

    def _completion(self, most: int, *, stop: tuple[str, ...] = (), json_schema: str | None = None) -> Completion:
        self._completions += 1
        seed = self._spec.seed
        return Completion(
            messages=self._memory.messages(),
            prefix=self._memory.opening(),
            max_tokens=min(most, self._meter.tokens_left()),
            json_schema=json_schema,
            stop=stop,
            temperature=self._spec.temperature,
            # Another one for each completion, or the same draws would come again and again.
            seed=None if seed is None else (seed + self._completions) % 2**64,
            model=self._started.model,
            adapter=self._spec.adapter,
            deadline=self._meter.deadline,
            tenant=self._tenant,
        )

    @property
    def _is_last(self) -> bool:
        return self._steps >= self._spec.budget.max_steps

    def _outcome(self) -> Outcome:
        withheld = self._is_last and bool(self._tools) and not self._memory.has_result
        return Outcome.STEP_LIMIT if withheld else Outcome.ANSWERED
