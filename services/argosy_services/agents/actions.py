"""Actions: the JSON that a model writes at the end of each step, its schema, and what it means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from argosy_services.agents.memory import Answer, ToolRequest
from argosy_services.agents.tools.base import Tool, parameters_schema
from argosy_services.agents.tools.registry import FINAL_ANSWER
from argosy_services.errors import ArgosyError, Reason

# Long enough for a paragraph, short enough that a model which repeats itself comes to an end.
MAX_ANSWER_CHARS = 600

# For llguidance, which enforces the schema: the white space of the examples in the prompt. Others ignore the key.
_SPELLING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def action_schema(tools: Sequence[Tool]) -> str:
    """JSON schema of one action: a call of one of the tools with valid arguments, or the answer."""
    actions = [_one(tool.name, parameters_schema(tool)) for tool in tools]
    answer = {"type": "string", "minLength": 1, "maxLength": MAX_ANSWER_CHARS}
    actions.append(_one(FINAL_ANSWER, _object({"answer": answer})))
    return json.dumps({"anyOf": actions, "x-guidance": _SPELLING})


def parse_action(text: str, *, step: int, call_id: str, tools: Sequence[Tool]) -> ToolRequest | Answer:
    """What the model wants. Raises INTERNAL where the text is no action: a chat model that is given a schema has to
    keep to it.
    """
    try:
        action = json.loads(text)
        name, arguments = action["tool"], action["arguments"]
        if name == FINAL_ANSWER:
            return Answer(step, str(arguments["answer"]))
        if not isinstance(arguments, dict) or name not in {tool.name for tool in tools}:
            raise ValueError("it calls no tool that was offered")
    except (ValueError, KeyError, TypeError) as error:
        raise ArgosyError(Reason.INTERNAL, f"the model broke the schema of actions: {error!r}") from error
    return ToolRequest(step, call_id, name, arguments)


def _one(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return _object({"tool": {"const": name}, "arguments": arguments})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
