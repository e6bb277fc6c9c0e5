"""What runs are asked for and what is told of them, between the schema and the vocabulary of agents."""

from __future__ import annotations

import json
from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from argosy.api.agents.v1 import agent_pb2 as pb
from argosy_services.agents.convert_events import EFFECTS, OUTCOMES, write_budget, write_seconds
from argosy_services.agents.tools.base import Effect, Tool
from argosy_services.agents.types import (
    AgentSpec,
    Budget,
    ChainPrompt,
    ClientToolSpec,
    RunInfo,
    RunState,
    Strategy,
)
from argosy_services.errors import invalid_field

_STRATEGIES = {
    Strategy.REACT: pb.AGENT_STRATEGY_REACT,
    Strategy.DIRECT: pb.AGENT_STRATEGY_DIRECT,
    Strategy.CHAIN_OF_THOUGHT: pb.AGENT_STRATEGY_CHAIN_OF_THOUGHT,
    Strategy.CHAIN: pb.AGENT_STRATEGY_CHAIN,
    Strategy.TOOL_CALLING: pb.AGENT_STRATEGY_TOOL_CALLING,
    Strategy.PLAN_AND_EXECUTE: pb.AGENT_STRATEGY_PLAN_AND_EXECUTE,
}
_STRATEGY_OF = {value: strategy for strategy, value in _STRATEGIES.items()} | {
    pb.AGENT_STRATEGY_UNSPECIFIED: Strategy.REACT
}
_EFFECT_OF = {value: effect for effect, value in EFFECTS.items()} | {pb.TOOL_EFFECT_UNSPECIFIED: Effect.WRITE}
_STATES = {
    RunState.RUNNING: pb.RUN_STATE_RUNNING,
    RunState.AWAITING_APPROVAL: pb.RUN_STATE_AWAITING_APPROVAL,
    RunState.AWAITING_RESULT: pb.RUN_STATE_AWAITING_RESULT,
    RunState.INTERRUPTED: pb.RUN_STATE_INTERRUPTED,
    RunState.FINISHED: pb.RUN_STATE_FINISHED,
}


def read_spec(given: pb.AgentSpec) -> AgentSpec:
    """What a request asks for; limits are the service's. Raises INVALID_FIELD for a strategy that does not exist, and
    for schemas that are no JSON objects.
    """
    strategy = _STRATEGY_OF.get(given.strategy)
    if strategy is None:
        raise invalid_field(
            "spec.strategy", "is not known", limit=", ".join(pb.AgentStrategy.keys()), value=given.strategy
        )
    return AgentSpec(
        task=given.task,
        tools=tuple(given.tools),
        budget=_read_budget(given.budget),
        model=given.model,
        adapter=given.adapter,
        temperature=given.temperature if given.HasField("temperature") else 0.0,
        seed=given.seed if given.HasField("seed") else None,
        strategy=strategy,
        votes=given.votes if given.HasField("votes") else 1,
        chain=tuple(
            ChainPrompt(prompt.name, prompt.template, prompt.for_each, prompt.when, prompt.contains)
            for prompt in given.chain
        ),
        client_tools=tuple(_read_tool(place, tool) for place, tool in enumerate(given.client_tools)),
        passages=tuple(given.passages),
        approve_writes=given.approval.writes,
        approve_tools=tuple(given.approval.tools),
        tool_required=given.tool_required,
    )


def write_spec(spec: AgentSpec) -> pb.AgentSpec:
    """What a run was asked for, defaults filled in."""
    return pb.AgentSpec(
        task=spec.task,
        tools=spec.tools,
        strategy=_STRATEGIES[spec.strategy],
        budget=write_budget(spec.budget),
        model=spec.model,
        adapter=spec.adapter,
        temperature=spec.temperature,
        seed=spec.seed,
        votes=spec.votes,
        chain=[
            pb.ChainPrompt(
                name=prompt.name,
                template=prompt.template,
                for_each=prompt.for_each,
                when=prompt.when,
                contains=prompt.contains,
            )
            for prompt in spec.chain
        ],
        client_tools=[
            pb.ClientTool(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=json.dumps(tool.parameters, ensure_ascii=False),
                effect=EFFECTS[tool.effect],
            )
            for tool in spec.client_tools
        ],
        passages=spec.passages,
        approval=pb.ApprovalPolicy(writes=spec.approve_writes, tools=spec.approve_tools),
        tool_required=spec.tool_required,
    )


def write_tool(tool: Tool) -> pb.ToolInfo:
    """A tool as callers see it."""
    return pb.ToolInfo(
        name=tool.name,
        description=tool.description,
        parameters_json_schema=json.dumps(tool.parameters, ensure_ascii=False),
        effect=EFFECTS[tool.effect],
        needs_approval=tool.needs_approval,
        timeout=write_seconds(tool.timeout_s),
    )


def write_info(info: RunInfo) -> pb.RunInfo:
    """A run as its owner sees it."""
    return pb.RunInfo(
        run_id=info.run_id,
        state=_STATES[info.state],
        spec=write_spec(info.spec),
        created=_time(info.created),
        updated=_time(info.updated),
        error=info.error,
        events=info.events,
        outcome=pb.RUN_OUTCOME_UNSPECIFIED if info.outcome is None else OUTCOMES[info.outcome],
        answer=info.answer,
    )


def _read_budget(given: pb.AgentBudget) -> Budget:
    budget = Budget()
    return Budget(
        max_steps=given.max_steps if given.HasField("max_steps") else budget.max_steps,
        max_tokens=given.max_tokens if given.HasField("max_tokens") else budget.max_tokens,
        max_seconds=(
            given.max_duration.seconds + given.max_duration.nanos / 1e9
            if given.HasField("max_duration")
            else budget.max_seconds
        ),
        max_tool_calls=given.max_tool_calls if given.HasField("max_tool_calls") else budget.max_tool_calls,
    )


def _read_tool(place: int, given: pb.ClientTool) -> ClientToolSpec:
    field = f"spec.client_tools[{place}]"
    try:
        schema = json.loads(given.parameters_json_schema or "{}")
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, Mapping):
        raise invalid_field(
            f"{field}.parameters_json_schema",
            "is no JSON object",
            limit="a JSON schema of type object",
            value=given.name,
        )
    effect = _EFFECT_OF.get(given.effect)
    if effect is None:
        raise invalid_field(
            f"{field}.effect", "is not known", limit=", ".join(pb.ToolEffect.keys()), value=given.effect
        )
    return ClientToolSpec(given.name, given.description, schema, effect)


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp
