"""Several prompts, each fed by the answers before it, with branches and maps."""

from __future__ import annotations

import re
from collections.abc import Mapping

from argosy_services.agents.budget import BudgetSpentError
from argosy_services.agents.strategies import direct
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.together import together
from argosy_services.agents.types import ChainPrompt
from argosy_services.agents.work import Work

MAX_ITEMS = 32

PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")


async def follow(work: Work) -> Result:
    """Asks the prompts in turn, each in a step; the answer is that of the last one that was asked."""
    answers: dict[str, str] = {"task": work.spec.task}
    last = ""
    for prompt in work.spec.chain:
        if prompt.when and prompt.contains.casefold() not in answers[prompt.when].casefold():
            answers[prompt.name] = ""
            continue
        async with work.stepping():
            answers[prompt.name] = last = await _ask(work, prompt, answers)
    return Result(last)


async def _ask(work: Work, prompt: ChainPrompt, answers: Mapping[str, str]) -> str:
    if not prompt.for_each:
        return await direct.answer(work, filled(prompt.template, answers), shown=True)
    items = [line.strip() for line in answers[prompt.for_each].splitlines() if line.strip()][:MAX_ITEMS]
    branches = [work.branch() for _ in items]
    async with together(BudgetSpentError) as group:
        tasks = [
            group.create_task(direct.answer(branch, filled(prompt.template, {**answers, "item": item})))
            for branch, item in zip(branches, items, strict=True)
        ]
    return "\n".join(" ".join(task.result().split()) for task in tasks)


def filled(template: str, answers: Mapping[str, str]) -> str:
    """The template with answers in place of `{{name}}`, in one pass: an answer that holds a placeholder stays as it
    is. Raises KeyError for a name that has none.
    """
    return PLACEHOLDER.sub(lambda place: answers[place[1]], template)
