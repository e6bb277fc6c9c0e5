"""A plan first, then its points one after the other, then the answer (Wang et al., "Plan-and-Solve", 2023)."""

from __future__ import annotations

import json

from argosy_services.agents.actions import broken, json_form
from argosy_services.agents.budget import BudgetSpentError
from argosy_services.agents.prompt import load_texts
from argosy_services.agents.strategies import direct, react
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.types import Outcome
from argosy_services.agents.work import Ask, Work
from argosy_services.tokenization.types import ChatMessage, Role

MAX_POINTS = 6
MAX_PLAN_TOKENS = 400

_PLAN = {
    "type": "object",
    "properties": {
        "plan": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_POINTS,
            "items": {"type": "string", "minLength": 1, "maxLength": 200},
        }
    },
    "required": ["plan"],
    "additionalProperties": False,
}


async def follow(work: Work) -> Result:
    """Plans, lets each point be worked on by ReAct with what came before, and answers from all of it.

    One step of the budget is kept for the answer; points that nothing is left for are not worked on.
    """
    texts = load_texts("plan_and_execute")
    async with work.stepping():
        points = await _plan(work)
    results: list[str] = []
    for point in points:
        if work.steps_left <= 1:
            break
        task = texts["point"].replace("{results}", "\n".join(results) or "-").replace("{point}", point)
        try:
            solved = await react.solve(work.branch(steps=work.steps_left - 1), task, work.tools)
        except BudgetSpentError as spent:
            if spent.outcome is not Outcome.STEP_LIMIT:
                raise
            break
        results.append(f"{point}: {solved.text}")
    async with work.stepping():
        task = texts["answer"].replace("{results}", "\n".join(results) or "-").replace("{task}", work.spec.task)
        answer = await direct.answer(work, task, shown=True)
    complete = len(results) == len(points)
    return Result(answer, Outcome.ANSWERED if complete else Outcome.STEP_LIMIT)


async def _plan(work: Work) -> list[str]:
    texts = load_texts("plan_and_execute")
    tools = "\n".join(f"{tool.name}: {tool.description}" for tool in work.tools) or "none"
    messages = [
        ChatMessage(Role.SYSTEM, texts["system"].replace("{tools}", tools)),
        ChatMessage(Role.USER, work.spec.task),
    ]
    reply = await work.write(Ask(messages, MAX_PLAN_TOKENS, form=json_form(_PLAN)))
    if reply.cut:
        raise BudgetSpentError(Outcome.TOKEN_LIMIT)
    try:
        return [str(point) for point in json.loads(reply.text)["plan"]]
    except (ValueError, KeyError, TypeError) as error:
        raise broken(error) from error
