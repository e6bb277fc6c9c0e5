"""Chats and tokenizers between the schema and the vocabulary of tokenization."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from argosy.api.common.v1 import chat_pb2
from argosy.api.tokenization.v1 import tokenization_service_pb2 as pb
from argosy.api.tokenization.v1 import tokenizer_pb2
from argosy_services.errors import invalid_field
from argosy_services.rpc import validate
from argosy_services.tokenization.types import (
    Chat,
    ChatMessage,
    Encoding,
    Role,
    TokenizerInfo,
    Tool,
    ToolCall,
    TruncationSide,
)

MAX_PARTS = 4096

_ROLES: dict[int, Role] = {
    chat_pb2.ROLE_SYSTEM: Role.SYSTEM,
    chat_pb2.ROLE_USER: Role.USER,
    chat_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    chat_pb2.ROLE_TOOL: Role.TOOL,
}
_SIDES: dict[int, TruncationSide] = {
    pb.TRUNCATION_SIDE_UNSPECIFIED: TruncationSide.RIGHT,
    pb.TRUNCATION_SIDE_RIGHT: TruncationSide.RIGHT,
    pb.TRUNCATION_SIDE_LEFT: TruncationSide.LEFT,
}
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_chat(field: str, prompt: chat_pb2.ChatPrompt) -> Chat:
    """The chat in a request; `field` is its path there.

    Raises INVALID_FIELD with the path of what is wrong, or TOO_MANY_INPUTS for more messages or tools than `MAX_PARTS`.
    """
    validate.count(f"{field}.messages", len(prompt.messages), limit=MAX_PARTS)
    if prompt.tools:
        validate.count(f"{field}.tools", len(prompt.tools), limit=MAX_PARTS)
    return Chat(
        messages=[_message(f"{field}.messages[{place}]", given) for place, given in enumerate(prompt.messages)],
        tools=_tools(f"{field}.tools", prompt.tools),
        add_generation_prompt=not prompt.HasField("add_generation_prompt") or prompt.add_generation_prompt,
    )


def read_side(field: str, side: int) -> TruncationSide:
    """The end that truncation drops. Raises INVALID_FIELD for a number that the schema does not have."""
    if side not in _SIDES:
        raise invalid_field(field, "is not a truncation side", limit="RIGHT or LEFT", value=side)
    return _SIDES[side]


def write_encodings(encodings: Sequence[Encoding], fingerprint: str) -> pb.EncodeResponse:
    """Encoded texts as the response."""
    return pb.EncodeResponse(encodings=map(_encoding, encodings), tokenizer_fingerprint=fingerprint)


def write_tokenizer(info: TokenizerInfo) -> tokenizer_pb2.Tokenizer:
    """A tokenizer's description as a message."""
    return tokenizer_pb2.Tokenizer(
        model=info.model,
        fingerprint=info.fingerprint,
        vocabulary_size=info.vocabulary_size,
        special_tokens=[tokenizer_pb2.SpecialToken(text=token.text, id=token.id) for token in info.special_tokens],
        has_chat_template=info.has_chat_template,
        bos_token_id=info.bos_token_id,
        eos_token_id=info.eos_token_id,
        pad_token_id=info.pad_token_id,
        max_context_tokens=info.max_context_tokens,
    )


def _encoding(encoding: Encoding) -> pb.Encoding:
    return pb.Encoding(
        ids=encoding.ids,
        byte_starts=[start for start, _ in encoding.byte_spans],
        byte_ends=[end for _, end in encoding.byte_spans],
        tokens=encoding.tokens,
        truncated_tokens=encoding.truncated_tokens,
    )


def _message(field: str, given: chat_pb2.ChatMessage) -> ChatMessage:
    role = _ROLES.get(given.role)
    if role is None:
        raise invalid_field(f"{field}.role", "is required", limit="SYSTEM, USER, ASSISTANT or TOOL", value=given.role)
    if given.tool_calls and role is not Role.ASSISTANT:
        raise invalid_field(f"{field}.tool_calls", "belongs to assistant messages", limit="ASSISTANT", value=role)
    if not given.content and not given.tool_calls:
        raise invalid_field(
            f"{field}.content", "must not be empty", limit="empty only with tool_calls", value="no characters"
        )
    return ChatMessage(
        role=role,
        content=given.content,
        name=given.name,
        tool_calls=[_call(f"{field}.tool_calls[{place}]", call) for place, call in enumerate(given.tool_calls)],
        tool_call_id=given.tool_call_id,
    )


def _call(field: str, given: chat_pb2.ToolCall) -> ToolCall:
    if not given.name:
        raise invalid_field(f"{field}.name", "is required", limit="a tool's name", value="nothing")
    return ToolCall(
        name=given.name, arguments=_json_object(f"{field}.arguments_json", given.arguments_json), id=given.id
    )


def _tools(field: str, given: Sequence[chat_pb2.Tool]) -> list[Tool]:
    tools = [_tool(f"{field}[{place}]", tool) for place, tool in enumerate(given)]
    names: set[str] = set()
    for place, tool in enumerate(tools):
        if tool.name in names:
            raise invalid_field(f"{field}[{place}].name", "is taken by another tool", limit="unique", value=tool.name)
        names.add(tool.name)
    return tools


def _tool(field: str, given: chat_pb2.Tool) -> Tool:
    if not _TOOL_NAME.fullmatch(given.name):
        limit = "1 to 64 of letters, digits, _ and -"
        raise invalid_field(f"{field}.name", "is not a tool name", limit=limit, value=given.name)
    path = f"{field}.parameters_json_schema"
    parameters = _json_object(path, given.parameters_json_schema) or {"type": "object", "properties": {}}
    if parameters.get("type") != "object":
        raise invalid_field(path, "must describe an object", limit='"type": "object"', value=parameters.get("type"))
    return Tool(name=given.name, description=given.description, parameters=parameters)


def _json_object(field: str, text: str) -> dict[str, object]:
    """A JSON object from text that a caller wrote; nothing for no text."""
    if not text:
        return {}
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        # Escapes can hide halves of surrogate pairs, which no tokenizer takes.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, f"is not usable JSON: {error}", limit="a JSON object", value=text) from error
    if not isinstance(value, dict):
        raise invalid_field(field, "is not a JSON object", limit="a JSON object", value=text)
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
