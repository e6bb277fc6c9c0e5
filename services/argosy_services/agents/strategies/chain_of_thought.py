"""Thinking aloud before the answer (Wei et al., "Chain-of-Thought Prompting", 2022), several times over with a vote
(Wang et al., "Self-Consistency", 2022).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from argosy_services.agents.actions import answer_form, parse_answer
from argosy_services.agents.budget import BudgetSpentError
from argosy_services.agents.prompt import load_texts
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.together import together
from argosy_services.agents.types import Outcome
from argosy_services.agents.work import Ask, Work
from argosy_services.tokenization.types import ChatMessage, Role

MAX_REASONING_TOKENS = 320
MAX_ANSWER_TOKENS = 320
# Votes differ only where draws do.
_VOTING_TEMPERATURE = 0.7

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")


async def follow(work: Work) -> Result:
    """Reasons as often as the run has votes, and takes the answer that most of them come to."""
    async with work.stepping():
        if work.spec.votes == 1:
            return Result(await _reason(work, work.spec.temperature, shown=True))
        temperature = work.spec.temperature or _VOTING_TEMPERATURE
        branches = [work.branch() for _ in range(work.spec.votes)]
        async with together(BudgetSpentError) as group:
            tasks = [group.create_task(_reason(branch, temperature, shown=False)) for branch in branches]
        return Result(vote([task.result() for task in tasks]))


def vote(answers: Sequence[str]) -> str:
    """The answer given most often, the earliest of those where several were; numbers are compared as numbers."""
    counts = Counter(map(_essence, answers))
    best = max(counts.values())
    return next(answer for answer in answers if counts[_essence(answer)] == best)


def _essence(answer: str) -> str:
    numbers = _NUMBER.findall(answer)
    if len(numbers) == 1:
        return f"{float(numbers[0].replace(',', '')):g}"
    return " ".join(answer.casefold().split()).rstrip(".!")


async def _reason(work: Work, temperature: float, *, shown: bool) -> str:
    texts = load_texts("chain_of_thought")
    messages = [
        ChatMessage(Role.SYSTEM, texts["system"]),
        ChatMessage(Role.USER, texts["task"].replace("{task}", work.spec.task)),
    ]
    reasoning = await work.write(
        Ask(messages, MAX_REASONING_TOKENS, prefix=texts["opening"], temperature=temperature, shown=shown)
    )
    prefix = f"{texts['opening']}{reasoning.text}{texts['conclusion']}"
    reply = await work.write(Ask(messages, MAX_ANSWER_TOKENS, prefix, answer_form(), temperature=0.0))
    if reply.cut:
        raise BudgetSpentError(Outcome.TOKEN_LIMIT)
    return parse_answer(reply.text)
