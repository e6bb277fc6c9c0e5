"""One prompt, one answer."""

from __future__ import annotations

from argosy_services.agents.prompt import load_texts
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.work import Ask, Work
from argosy_services.tokenization.types import ChatMessage, Role

MAX_ANSWER_TOKENS = 1_024


async def follow(work: Work) -> Result:
    """Asks the model, and takes what it says."""
    async with work.stepping():
        return Result(await answer(work, work.spec.task, shown=True))


async def answer(work: Work, task: str, *, shown: bool = False) -> str:
    """The model's answer to a task, in free text, within the step that runs."""
    messages = [ChatMessage(Role.SYSTEM, load_texts("direct")["system"]), ChatMessage(Role.USER, task)]
    reply = await work.write(Ask(messages, MAX_ANSWER_TOKENS, shown=shown))
    return reply.text.strip()
