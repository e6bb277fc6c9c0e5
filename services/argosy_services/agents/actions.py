"""Actions: the JSON that a model writes at the end of each step, its schema, and what it means."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from argosy_services.agents.tools.base import Tool
from argosy_services.agents.tools.registry import FINAL_ANSWER
from argosy_services.agents.work import ToolCall
from argosy_services.engine.base import Grammar, GrammarKind
from argosy_services.errors import ArgosyError, Reason

# Long enough for a paragraph, short enough that a model which repeats itself comes to an end.
MAX_ANSWER_CHARS = 600

# For llguidance, which enforces the schema: the white space of the examples in the prompt. Others ignore the key.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """The model does not want another call: it answers."""

    text: str


def json_form(schema: Mapping[str, Any]) -> Grammar:
    """The form of a JSON value that is valid under a schema, in the spelling of the prompts."""
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps({**schema, "x-guidance": _SPELLING}))


def answer_form() -> Grammar:
    """The form `{"answer": "..."}`."""
    return json_form(_object({"answer": {"type": "string", "minLength": 1, "maxLength": MAX_ANSWER_CHARS}}))


def parse_answer(text: str) -> str:
    """The answer in what `answer_form` allows. Raises INTERNAL for anything else."""
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise broken(error) from error


def action_form(tools: Sequence[Tool]) -> Grammar:
    """The form of one action: a call of one of the tools with valid arguments, or the answer."""
    actions = [_one(tool.name, tool.parameters) for tool in tools]
    answer = {"type": "string", "minLength": 1, "maxLength": MAX_ANSWER_CHARS}
    actions.append(_one(FINAL_ANSWER, _object({"answer": answer})))
    return json_form({"anyOf": actions})


def parse_action(text: str, tools: Sequence[Tool]) -> ToolCall | FinalAnswer:
    """What the model wants. Raises INTERNAL where the text is no action: a chat model that is given a form has to keep
    to it.
    """
    try:
        action = json.loads(text)
        name, arguments = action["tool"], action["arguments"]
        if name == FINAL_ANSWER:
            return FinalAnswer(str(arguments["answer"]))
        return checked_call(name, arguments, tools)
    except (ValueError, KeyError, TypeError) as error:
        raise broken(error) from error


def checked_call(name: object, arguments: object, tools: Sequence[Tool]) -> ToolCall:
    """A call of one of the tools. Raises ValueError for anything else."""
    if not isinstance(arguments, dict) or not isinstance(name, str) or name not in {tool.name for tool in tools}:
        raise ValueError("it calls no tool that was offered")
    return ToolCall(name, arguments)


def broken(error: Exception) -> ArgosyError:
    """The model did not keep to the form that it was given."""
    return ArgosyError(Reason.INTERNAL, f"the model broke the schema of actions: {error!r}")


def _one(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return _object({"tool": {"const": name}, "arguments": arguments})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
