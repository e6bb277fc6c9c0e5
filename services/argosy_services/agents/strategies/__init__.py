"""How an agent goes about its task: one module for each way, all over the same typed steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from argosy_services.agents.strategies import (
    chain,
    chain_of_thought,
    direct,
    plan_and_execute,
    react,
    tool_calling,
)
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.types import Strategy
from argosy_services.agents.work import Work


@dataclass(frozen=True, slots=True)
class Way:
    """A strategy: what carries it out, and the prompt file that it is written with."""

    follow: Callable[[Work], Awaitable[Result]]
    prompt: str
    uses_tools: bool = False


WAYS: Mapping[Strategy, Way] = {
    Strategy.DIRECT: Way(direct.follow, "direct"),
    Strategy.CHAIN_OF_THOUGHT: Way(chain_of_thought.follow, "chain_of_thought"),
    Strategy.CHAIN: Way(chain.follow, "chain"),
    Strategy.REACT: Way(react.follow, "react", uses_tools=True),
    Strategy.TOOL_CALLING: Way(tool_calling.follow, "tool_calling", uses_tools=True),
    Strategy.PLAN_AND_EXECUTE: Way(plan_and_execute.follow, "plan_and_execute", uses_tools=True),
}
