"""Runs of agents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from argosy._convert import common
from argosy._tools import FunctionTool, as_tool
from argosy.api.agents.v1 import agent_pb2 as pb
from argosy.api.agents.v1 import agents_service_pb2 as rpc
from argosy.errors import ProtocolError
from argosy.types.agents import (
    AgentBudget,
    AgentEvent,
    AgentStrategy,
    Answer,
    ApprovalDecided,
    ApprovalPolicy,
    ApprovalRequested,
    ChainPrompt,
    ModelReplied,
    RunFinished,
    RunInfo,
    RunOutcome,
    RunResumed,
    RunStarted,
    RunState,
    ThoughtDelta,
    ToolEffect,
    ToolInfo,
    ToolRequested,
    ToolReturned,
    ToolStarted,
)

_STRATEGIES = {
    AgentStrategy.REACT: pb.AGENT_STRATEGY_REACT,
    AgentStrategy.DIRECT: pb.AGENT_STRATEGY_DIRECT,
    AgentStrategy.CHAIN_OF_THOUGHT: pb.AGENT_STRATEGY_CHAIN_OF_THOUGHT,
    AgentStrategy.CHAIN: pb.AGENT_STRATEGY_CHAIN,
    AgentStrategy.TOOL_CALLING: pb.AGENT_STRATEGY_TOOL_CALLING,
    AgentStrategy.PLAN_AND_EXECUTE: pb.AGENT_STRATEGY_PLAN_AND_EXECUTE,
}
_EFFECTS = {ToolEffect.READ: pb.TOOL_EFFECT_READ, ToolEffect.WRITE: pb.TOOL_EFFECT_WRITE}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a task is to be gone about; the parameters of `AgentsClient.run`."""

    tools: Sequence[str | FunctionTool | Callable[..., Any]] = ()
    strategy: AgentStrategy | str = AgentStrategy.REACT
    budget: AgentBudget = field(default_factory=AgentBudget)
    model: str = ""
    adapter: str = ""
    temperature: float | None = None
    seed: int | None = None
    votes: int | None = None
    chain: Sequence[ChainPrompt] = ()
    passages: Sequence[str] = ()
    approval: ApprovalPolicy | None = None
    tool_required: bool = False
    detached: bool = False


def functions_of(tools: Sequence[str | FunctionTool | Callable[..., Any]]) -> dict[str, FunctionTool]:
    """The caller's own tools among the given ones, by name."""
    if isinstance(tools, str):
        raise TypeError("tools must be a sequence, not one text")
    return {made.name: made for made in (as_tool(given) for given in tools if not isinstance(given, str))}


def run_request(task: str, options: RunOptions, functions: Mapping[str, FunctionTool]) -> rpc.RunAgentRequest:
    """A task to run. Raises TypeError and ValueError where an option is not one."""
    names = [given for given in options.tools if isinstance(given, str)]
    strategy = AgentStrategy(options.strategy)
    if strategy is AgentStrategy.UNKNOWN:
        raise ValueError("strategy must be one of " + ", ".join(_STRATEGIES))
    spec = pb.AgentSpec(
        task=task,
        tools=names,
        strategy=_STRATEGIES[strategy],
        model=options.model,
        adapter=options.adapter,
        temperature=options.temperature,
        seed=options.seed,
        votes=options.votes,
        chain=[pb.ChainPrompt(**asdict(prompt)) for prompt in options.chain],
        client_tools=[
            pb.ClientTool(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=json.dumps(dict(tool.parameters)),
                effect=_EFFECTS[tool.effect],
            )
            for tool in functions.values()
        ],
        passages=common.texts_of("passages", options.passages),
        tool_required=options.tool_required,
    )
    if options.approval is not None:
        approval = pb.ApprovalPolicy(writes=options.approval.writes, tools=options.approval.tools)
        spec.approval.CopyFrom(approval)
    budget = options.budget
    for bound in ("max_steps", "max_tokens", "max_tool_calls"):
        if getattr(budget, bound) is not None:
            common.set_field(spec.budget, bound, getattr(budget, bound), name=f"budget.{bound}")
    if budget.max_duration is not None:
        spec.budget.max_duration.CopyFrom(common.duration(budget.max_duration))
    return rpc.RunAgentRequest(spec=spec, detached=options.detached)


def event(message: Any) -> AgentEvent | None:
    """One event of a run, however it is followed; None for a keep-alive, and for what this version does not know."""
    kind = message.WhichOneof("event")
    read = _EVENTS.get(kind)
    return None if read is None else read(getattr(message, kind))


def _requested(call: pb.ToolRequested) -> ToolRequested:
    arguments = common.json_object(call.arguments_json, "a tool's arguments")
    return ToolRequested(call.step, call.call_id, call.tool, arguments, _effect(call.effect), call.by_client)


def _finished(end: pb.RunFinished) -> RunFinished:
    usage, took = common.usage(end.usage), common.seconds(end.duration)
    return RunFinished(_outcome(end.outcome), end.steps, end.tool_calls, usage, took)


def _outcome(number: int) -> RunOutcome:
    return common.enum_of(RunOutcome, pb.RunOutcome, "RUN_OUTCOME_", number)


def _effect(number: int) -> ToolEffect:
    return common.enum_of(ToolEffect, pb.ToolEffect, "TOOL_EFFECT_", number)


_EVENTS: Mapping[str | None, Callable[[Any], AgentEvent]] = {
    "started": lambda m: RunStarted(m.run_id, m.model, tuple(m.tools), _budget(m.budget), m.prompt),
    "resumed": lambda m: RunResumed(m.step),
    "thought_delta": lambda m: ThoughtDelta(m.step, m.text),
    "model_replied": lambda m: ModelReplied(m.step, common.usage(m.usage)),
    "tool_requested": _requested,
    "approval_requested": lambda m: ApprovalRequested(m.step, m.call_id),
    "approval_decided": lambda m: ApprovalDecided(m.step, m.call_id, m.approved, m.reason),
    "tool_started": lambda m: ToolStarted(m.step, m.call_id),
    "tool_returned": lambda m: ToolReturned(m.step, m.call_id, m.observation, m.is_error, common.seconds(m.duration)),
    "answer": lambda m: Answer(m.step, m.text),
    "finished": _finished,
}


def run_info(message: pb.RunInfo) -> RunInfo:
    """A run as its owner sees it."""
    return RunInfo(
        run_id=message.run_id,
        state=common.enum_of(RunState, pb.RunState, "RUN_STATE_", message.state),
        task=message.spec.task,
        strategy=common.enum_of(AgentStrategy, pb.AgentStrategy, "AGENT_STRATEGY_", message.spec.strategy),
        created=common.time_of(message, "created"),
        updated=common.time_of(message, "updated"),
        error=message.error,
        events=message.events,
        outcome=_outcome(message.outcome) if message.outcome else None,
        answer=common.optional(message, "answer"),
    )


def _budget(message: pb.AgentBudget) -> AgentBudget:
    return AgentBudget(
        max_steps=common.optional(message, "max_steps"),
        max_tokens=common.optional(message, "max_tokens"),
        max_duration=common.seconds(message.max_duration) if message.HasField("max_duration") else None,
        max_tool_calls=common.optional(message, "max_tool_calls"),
    )


class RunReader:
    """Reads the events of a run and keeps its answer and its end. With `may_stop` the stream may end before the run."""

    def __init__(self, run_id: str = "", *, may_stop: bool = False) -> None:
        self.answer: str | None = None
        self.finished: RunFinished | None = None
        self.run_id = run_id
        self._may_stop = may_stop

    def read(self, message: Any) -> Iterator[AgentEvent]:
        """The event in a message."""
        read = event(message)
        match read:
            case None:
                return
            case RunStarted():
                self.run_id = read.run_id
            case Answer():
                self.answer = read.text
            case RunFinished():
                self.finished = read
        yield read

    def end(self) -> None:
        """Raises ProtocolError unless the run was finished."""
        if self.finished is None and not self._may_stop:
            raise ProtocolError(f"the stream of run {self.run_id or '(not started)'} ended before the run did")


def tool(message: pb.ToolInfo) -> ToolInfo:
    """A tool that runs may use."""
    schema = common.json_object(message.parameters_json_schema, "a tool's parameters")
    timeout = common.seconds(message.timeout)
    return ToolInfo(message.name, message.description, schema, _effect(message.effect), message.needs_approval, timeout)
