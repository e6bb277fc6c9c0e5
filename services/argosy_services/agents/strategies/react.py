"""Thought, action and observation in turn, until the answer (Yao et al., "ReAct", 2022).

Made for very small models. The thought is one short line of free text; it serves the model, which chooses better after
having named what it needs. The action is generated under a JSON schema that holds exactly the tools of the run, so it
always is a call that can be carried out. Only the answer is offered in the last step of the budget, and to a model
that would do again what it has done.
"""

from __future__ import annotations

from collections.abc import Sequence

from argosy_services.agents.actions import FinalAnswer, action_form, parse_action
from argosy_services.agents.budget import BudgetSpentError
from argosy_services.agents.memory import Answer, Memory, Thought
from argosy_services.agents.prompt import load_prompt
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.types import Outcome
from argosy_services.agents.work import Ask, ToolCall, Work

MAX_THOUGHT_TOKENS = 40
# Above what the longest answer needs in most languages; it keeps the request below the context of small models.
MAX_ACTION_TOKENS = 640


async def follow(work: Work) -> Result:
    """Works on the task of the run with its tools."""
    return await solve(work, work.spec.task, work.tools)


async def solve(work: Work, task: str, tools: Sequence[Tool]) -> Result:
    """Works on a task with tools of the run. Raises BudgetSpentError where nothing is left for an answer."""
    memory = Memory(load_prompt("react"), task, tools)
    while True:
        async with work.stepping() as step:
            thought = await work.write(
                Ask(memory.messages(), MAX_THOUGHT_TOKENS, memory.opening(), stop=("\n",), shown=True)
            )
            memory.add(Thought(step, thought.text.strip()))
            action = await _act(work, memory, tools)
            if isinstance(action, FinalAnswer):
                memory.add(Answer(step, action.text))
                withheld = work.must_answer and bool(tools) and not memory.has_result
                return Result(action.text, Outcome.STEP_LIMIT if withheld else Outcome.ANSWERED)
            for record in (await work.use([action]))[0]:
                memory.add(record)


async def _act(work: Work, memory: Memory, tools: Sequence[Tool]) -> ToolCall | FinalAnswer:
    action = await _choose(work, memory, [] if work.must_answer else tools)
    if isinstance(action, ToolCall) and memory.repeats(action.tool, action.arguments):
        # Small models like to go round in circles; they have what they need.
        return await _choose(work, memory, [])
    return action


async def _choose(work: Work, memory: Memory, tools: Sequence[Tool]) -> ToolCall | FinalAnswer:
    reply = await work.write(Ask(memory.messages(), MAX_ACTION_TOKENS, memory.opening(), action_form(tools)))
    if reply.cut:
        raise BudgetSpentError(Outcome.TOKEN_LIMIT)
    return parse_action(reply.text, tools)
