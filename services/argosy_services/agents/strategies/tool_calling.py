"""Calls of tools in the form that a model was trained for: its own chat template announces the tools and shows calls
and results.

A model whose template has no place for tools is told in the system message, in the form that most others use: JSON
between `<tool_call>` and `</tool_call>` (NousResearch, "Hermes-Function-Calling", 2024). Calls are generated under a
grammar, so a reply either is text, or one call or several with valid arguments.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from argosy_services.agents.actions import broken, checked_call
from argosy_services.agents.budget import BudgetSpentError
from argosy_services.agents.memory import Observation, ToolRequest
from argosy_services.agents.prompt import load_texts
from argosy_services.agents.strategies.result import Result
from argosy_services.agents.tools.base import Tool
from argosy_services.agents.types import Outcome
from argosy_services.agents.work import Ask, ToolCall, Work
from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.tokenization.types import ChatMessage, Role
from argosy_services.tokenization.types import Tool as ToolSchema
from argosy_services.tokenization.types import ToolCall as ShownCall

MAX_REPLY_TOKENS = 1_024
MAX_PARALLEL_CALLS = 4

# What would be taken for a call is none.
_TEXT = "TEXT: /(?s:[^<].*)/"
_OPEN, _CLOSE = "<tool_call>\n", "\n</tool_call>"


async def follow(work: Work) -> Result:
    """Lets the model call tools until it answers in text, or may call no more."""
    conversation = _Conversation(work)
    called = False
    while True:
        async with work.stepping():
            tools = [] if work.must_answer else work.tools
            form = calls_form(tools, required=work.spec.tool_required and not called, most=work.calls_at_once)
            reply = await work.write(
                Ask(conversation.messages, MAX_REPLY_TOKENS, form=form, tools=conversation.schemas)
            )
            if not tools or not reply.text.startswith(_OPEN):
                return Result(
                    reply.text.strip(), _outcome(work, answered=not work.must_answer or not work.tools or called)
                )
            if reply.cut:
                raise BudgetSpentError(Outcome.TOKEN_LIMIT)
            conversation.add(await work.use(parse_calls(reply.text, tools)))
            called = True


def calls_form(tools: Sequence[Tool], *, required: bool, most: int) -> Grammar:
    """The form of a reply: text that begins with no `<`, or up to `most` calls; calls alone where one is required, text
    alone where there is nothing to call.
    """
    if not tools or most < 1:
        return Grammar(GrammarKind.LARK, f"start: TEXT\n{_TEXT}")
    schema = {
        "anyOf": [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": tool.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ],
        "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    }
    reply = "calls" if required else "calls | TEXT"
    others = min(most, MAX_PARALLEL_CALLS) - 1
    more = f' ("\\n" call){{0,{others}}}' if others else ""
    lines = [
        f"start: {reply}",
        f"calls: call{more}",
        f"call: {json.dumps(_OPEN)} object {json.dumps(_CLOSE)}",
        f"object: %json {json.dumps(schema)}",
    ]
    if not required:
        lines.append(_TEXT)
    return Grammar(GrammarKind.LARK, "\n".join(lines))


def parse_calls(text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """The calls in what `calls_form` allows. Raises INTERNAL for anything else."""
    try:
        bodies = text.removeprefix(_OPEN).removesuffix(_CLOSE).split(f"{_CLOSE}\n{_OPEN}")
        wanted = [json.loads(body) for body in bodies]
        return [checked_call(one["name"], one["arguments"], tools) for one in wanted]
    except (ValueError, KeyError, TypeError) as error:
        raise broken(error) from error


def _outcome(work: Work, *, answered: bool) -> Outcome:
    return Outcome.ANSWERED if answered else Outcome.STEP_LIMIT


class _Conversation:
    """The messages so far, in the form that the model's template knows."""

    def __init__(self, work: Work) -> None:
        texts = load_texts("tool_calling")
        schemas = [ToolSchema(tool.name, tool.description, dict(tool.shown)) for tool in work.tools]
        self._announced = work.announces_tools
        self.schemas = schemas if self._announced else []
        system = texts["system"]
        if schemas and not self._announced:
            listed = "\n".join(
                json.dumps({"name": tool.name, "description": tool.description, "parameters": tool.parameters})
                for tool in schemas
            )
            system += texts["tools"].replace("{tools}", listed)
        self.messages = [ChatMessage(Role.SYSTEM, system), ChatMessage(Role.USER, work.spec.task)]

    def add(self, results: Sequence[tuple[ToolRequest, Observation]]) -> None:
        """Appends calls and what came of them."""
        if self._announced:
            calls = [ShownCall(request.tool, dict(request.arguments), request.call_id) for request, _ in results]
            self.messages.append(ChatMessage(Role.ASSISTANT, "", tool_calls=calls))
            for request, seen in results:
                self.messages.append(
                    ChatMessage(Role.TOOL, _said(seen), name=request.tool, tool_call_id=request.call_id)
                )
            return
        written = "\n".join(_written(request) for request, _ in results)
        seen = "\n".join(f"<tool_response>\n{_said(one)}\n</tool_response>" for _, one in results)
        self.messages += [ChatMessage(Role.ASSISTANT, written), ChatMessage(Role.USER, seen)]


def _written(request: ToolRequest) -> str:
    body = json.dumps({"name": request.tool, "arguments": dict(request.arguments)}, ensure_ascii=False)
    return f"{_OPEN}{body}{_CLOSE}"


def _said(observation: Observation) -> str:
    return f"Error: {observation.text}" if observation.is_error else observation.text
