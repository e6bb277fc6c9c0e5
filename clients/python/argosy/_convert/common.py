"""What more than one area converts."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp

from argosy.api.common.v1 import chat_pb2, usage_pb2
from argosy.errors import ProtocolError
from argosy.types.common import ChatMessage, Message, Timings, Tool, ToolCall, Usage

E = TypeVar("E", bound=enum.StrEnum)

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}


def chat_prompt(messages: Sequence[Message], tools: Sequence[Tool]) -> chat_pb2.ChatPrompt:
    """A conversation. Raises TypeError and ValueError where a message is not one."""
    return chat_pb2.ChatPrompt(
        messages=[_chat_message(position, message) for position, message in enumerate(messages)],
        tools=[
            chat_pb2.Tool(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=json.dumps(dict(tool.parameters)) if tool.parameters else "",
            )
            for tool in tools
        ],
    )


def _chat_message(position: int, given: Message) -> chat_pb2.ChatMessage:
    message = given if isinstance(given, ChatMessage) else _from_dict(position, given)
    role = _ROLES.get(message.role)
    if role is None:
        raise ValueError(f"messages[{position}].role must be one of {', '.join(_ROLES)} (given: {message.role!r})")
    return chat_pb2.ChatMessage(
        role=role,
        content=message.content,
        name=message.name,
        tool_calls=[
            chat_pb2.ToolCall(id=call.id, name=call.name, arguments_json=json.dumps(dict(call.arguments)))
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _from_dict(position: int, given: Message) -> ChatMessage:
    if not isinstance(given, Mapping):
        raise TypeError(f"messages[{position}] must be a ChatMessage or a dict (given: {type(given).__name__})")
    fields = dict(given)
    calls = [call if isinstance(call, ToolCall) else ToolCall(**call) for call in fields.pop("tool_calls", ())]
    try:
        return ChatMessage(**fields, tool_calls=calls)
    except TypeError as error:
        raise TypeError(f"messages[{position}]: {error}") from None


def is_chat(prompt: Sequence[Message] | Sequence[int]) -> bool:
    """Whether a prompt that is no text is a conversation rather than token ids."""
    return len(prompt) > 0 and isinstance(prompt[0], ChatMessage | Mapping)


def token_ids(field: str, ids: Iterable[int]) -> usage_pb2.TokenIds:
    """Token ids; anything with `__index__` counts as one. Raises TypeError and ValueError naming `field`."""
    message = usage_pb2.TokenIds()
    set_field(message, "ids", list(ids), name=field)
    return message


def set_field(message: ProtoMessage, field: str, value: Any, *, name: str) -> None:
    """Sets a field, and puts the caller's name for it before the complaint of protobuf about type or range."""
    target = getattr(message, field)
    try:
        if isinstance(value, Mapping):
            target.update(value)
        elif isinstance(value, list):
            target.extend(value)
        else:
            setattr(message, field, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def texts_of(field: str, texts: Sequence[str]) -> list[str]:
    """A list of texts; a lone string, whose characters would be taken for texts, is refused with TypeError."""
    if isinstance(texts, str):
        raise TypeError(f"{field} must be a sequence of texts, not one text")
    return list(texts)


def usage(message: usage_pb2.Usage) -> Usage:
    """Tokens that a call consumed."""
    return Usage(message.prompt_tokens, message.cached_tokens, message.completion_tokens)


def timings(message: usage_pb2.StageTimings) -> Timings:
    """Stage timings; what is unset is None."""
    return Timings(
        **{stage.name: seconds(duration) for stage, duration in message.ListFields()},
    )


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.ToNanoseconds() / 1e9


def duration(length: float) -> Duration:
    """Seconds as a duration."""
    message = Duration()
    message.FromNanoseconds(round(length * 1e9))
    return message


def time_of(message: ProtoMessage, field: str) -> datetime | None:
    """A timestamp field, in UTC; None where it is unset."""
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)


def optional(message: ProtoMessage, field: str) -> Any:
    """An optional field; None where it is unset."""
    return getattr(message, field) if message.HasField(field) else None


def enum_of(kind: type[E], wrapper: Any, prefix: str, number: int) -> E:
    """An enum's value by its name in the schema, UNKNOWN where this version does not know it. `wrapper` is the
    generated enum.
    """
    if number not in wrapper.values():
        return kind["UNKNOWN"]
    return kind.__members__.get(wrapper.Name(number).removeprefix(prefix), kind["UNKNOWN"])


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object that the server sent; empty text stands for an empty object. Raises ProtocolError."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ProtocolError(f"the server sent {what} that are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"the server sent {what} that are not a JSON object")
    return value
