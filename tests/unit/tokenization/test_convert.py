"""Chats of requests: what is read, and which path an error names."""

from __future__ import annotations

from typing import Any

import pytest

from argosy.api.common.v1 import chat_pb2
from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.convert import MAX_PARTS, read_chat
from argosy_services.tokenization.types import Chat, ChatMessage, Role, Tool, ToolCall

ARGUMENTS = "chat.messages[1].tool_calls[0].arguments_json"
PARAMETERS = "chat.tools[0].parameters_json_schema"
HELLO = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="Hello")


def test_a_whole_conversation_is_read() -> None:
    prompt = chat_pb2.ChatPrompt(
        messages=[
            HELLO,
            chat_pb2.ChatMessage(
                role=chat_pb2.ROLE_ASSISTANT,
                tool_calls=[chat_pb2.ToolCall(id="c1", name="clock", arguments_json='{"zone": "UTC"}')],
            ),
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_TOOL, content="noon", name="clock", tool_call_id="c1"),
        ],
        tools=[
            chat_pb2.Tool(name="clock", description="Tells the time."),
            chat_pb2.Tool(name="map", parameters_json_schema='{"type": "object", "required": ["place"]}'),
        ],
        add_generation_prompt=False,
    )
    assert read_chat("chat", prompt) == Chat(
        messages=[
            ChatMessage(Role.USER, "Hello", tool_calls=[]),
            ChatMessage(Role.ASSISTANT, "", tool_calls=[ToolCall("clock", {"zone": "UTC"}, "c1")]),
            ChatMessage(Role.TOOL, "noon", name="clock", tool_calls=[], tool_call_id="c1"),
        ],
        tools=[
            Tool("clock", "Tells the time.", {"type": "object", "properties": {}}),
            Tool("map", "", {"type": "object", "required": ["place"]}),
        ],
        add_generation_prompt=False,
    )


def test_the_generation_prompt_is_added_unless_refused() -> None:
    assert read_chat("chat", chat_pb2.ChatPrompt(messages=[HELLO])).add_generation_prompt


def calling(**call: Any) -> dict[str, Any]:
    return {
        "messages": [HELLO, chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[chat_pb2.ToolCall(**call)])]
    }


def announcing(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [HELLO], "tools": [chat_pb2.Tool(**tool) for tool in tools]}


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ({}, "chat.messages"),
        ({"messages": [chat_pb2.ChatMessage(content="x")]}, "chat.messages[0].role"),
        ({"messages": [chat_pb2.ChatMessage(role=99, content="x")]}, "chat.messages[0].role"),  # type: ignore[arg-type]
        ({"messages": [HELLO, chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER)]}, "chat.messages[1].content"),
        (
            {"messages": [chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, tool_calls=[chat_pb2.ToolCall(name="x")])]},
            "chat.messages[0].tool_calls",
        ),
        (calling(), "chat.messages[1].tool_calls[0].name"),
        (calling(name="x", arguments_json="{"), ARGUMENTS),
        (calling(name="x", arguments_json="[1]"), ARGUMENTS),
        (calling(name="x", arguments_json='{"a": NaN}'), ARGUMENTS),
        (calling(name="x", arguments_json='{"a": "\\ud800"}'), ARGUMENTS),
        (calling(name="x", arguments_json="[" * 100_000), ARGUMENTS),
        (
            calling(name="x", arguments_json='{"a": ' + "9" * 5000 + "}"),
            ARGUMENTS,
        ),
        (announcing({"name": ""}), "chat.tools[0].name"),
        (announcing({"name": "two words"}), "chat.tools[0].name"),
        (announcing({"name": "x" * 65}), "chat.tools[0].name"),
        (announcing({"name": "a"}, {"name": "a"}), "chat.tools[1].name"),
        (
            announcing({"name": "a", "parameters_json_schema": '{"type": "string"}'}),
            PARAMETERS,
        ),
        (announcing({"name": "a", "parameters_json_schema": "nonsense"}), PARAMETERS),
    ],
)
def test_what_is_wrong_is_named(prompt: dict[str, Any], field: str) -> None:
    with pytest.raises(ArgosyError) as caught:
        read_chat("chat", chat_pb2.ChatPrompt(**prompt))
    assert (caught.value.reason, caught.value.metadata["field"]) == (Reason.INVALID_FIELD, field)


@pytest.mark.parametrize("part", ["messages", "tools"])
def test_a_chat_without_end_is_refused(part: str) -> None:
    tools = [chat_pb2.Tool(name=f"t{number}") for number in range(MAX_PARTS + 1)]
    many = {"messages": [HELLO] * (MAX_PARTS + 1)} if part == "messages" else {"messages": [HELLO], "tools": tools}
    with pytest.raises(ArgosyError) as caught:
        read_chat("chat", chat_pb2.ChatPrompt(**many))
    assert (caught.value.reason, caught.value.metadata["field"]) == (Reason.TOO_MANY_INPUTS, f"chat.{part}")
