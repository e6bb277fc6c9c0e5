"""Chats render as transformers renders them, through templates of every style that checkpoints bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.chat_template import ChatTemplates
from argosy_services.tokenization.types import Chat, ChatMessage, Role, Tool, ToolCall

TEMPLATES = {
    "marks around each message": """
{%- for m in messages %}
    {{- '<|' + m.role + '|>' + m['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
""",
    "brackets, strict about turns": """
{{ bos_token }}{% for m in messages if m['role'] != 'system' %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate, and start with the user') }}
{% endif %}
{% if m['role'] == 'user' %}
[Q] {{ m['content'] }} [/Q]
{% else %}
 {{ m['content'] + eos_token }}
{% endif %}
{% endfor %}
""",
    "tools, calls and results": """
{%- set ns = namespace(seen=false, last=messages | length - 1) %}
{%- if tools %}
    {{- 'tools:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}{{ '\\n' }}
        {{- tool.function.parameters | tojson(indent=2) }}
    {%- endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' and m.tool_calls is defined %}
        {%- for call in m.tool_calls %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<call>' ~ call.name ~ ' ' ~ (call.arguments | tojson) ~ '</call>' }}
        {%- endfor %}
        {%- set ns.seen = true %}
    {%- elif m.role == 'tool' %}
        {{- '<result id="' ~ (m.tool_call_id or 'none') ~ '" by="' ~ m.name ~ '">' ~ m.content ~ '</result>' }}
    {%- else %}
        {{- m.role ~ ': ' ~ m.content ~ '\\n' }}
    {%- endif %}
    {%- if loop.index0 == ns.last and ns.seen %}{{ 'called' }}{%- endif %}
{%- endfor %}
""",
    "loop controls, macros and training marks": """
{% macro line(m) %}
    {{ m.role | upper }}> {{ m.content }}
{% endmacro %}
{% for m in messages %}
    {% if m.role == 'system' %}{% continue %}{% endif %}
    {% if m.role == 'assistant' %}
        {% generation %}
        {{ line(m) }}
        {% endgeneration %}
    {% else %}
        {{ line(m) }}
    {% endif %}
    {% if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
""",
    "names that may be missing": """
{{ documents is none }} {{ tools is none }} {{ sep_token is defined }} {{ unk_token }} {{ strftime_now('%Y') | length }}
{{ messages[0].name is defined }} {{ messages | map(attribute='role') | join(',') }} {{ messages[-1].content | tojson }}
{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true, separators=(',', ':')) }} {{ dict(x=1).items() | list }}
""",
}

SYSTEM = ChatMessage(Role.SYSTEM, "Be brief.\n")
ASK = ChatMessage(Role.USER, "  Où est <b>Paris</b> & \"what\" 'time'? 😀  ", name="reader")
ANSWER = ChatMessage(Role.ASSISTANT, "In France.")
CALLS = ChatMessage(
    Role.ASSISTANT,
    "",
    tool_calls=[ToolCall("clock", {"zone": "Europe/Paris", "é": [1, None, True, 0.5]}, "c1"), ToolCall("map", {})],
)
RESULT = ChatMessage(Role.TOOL, '{"hour": 12}', name="clock", tool_call_id="c1")
TOOLS = [
    Tool("clock", "Tells the <local> time.", {"type": "object", "properties": {"zone": {"type": "string"}}}),
    Tool("map", "", {"type": "object", "properties": {}}),
]
CHATS = {
    "one question": Chat([ASK]),
    "system and turns": Chat([SYSTEM, ASK, ANSWER, ASK]),
    "ends with the assistant": Chat([ASK, ANSWER], add_generation_prompt=False),
    "tools announced": Chat([SYSTEM, ASK], tools=TOOLS),
    "tools called": Chat([ASK, CALLS, RESULT, ANSWER], tools=TOOLS[:1]),
}


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("template", [None, *TEMPLATES.values()], ids=["bundled", *TEMPLATES.keys()])
def test_a_chat_renders_as_in_the_reference(smollm2_pair: Any, template: str | None, chat: Chat) -> None:
    ours, theirs = smollm2_pair
    assert outcome(lambda: render(ours, theirs, template, chat)) == outcome(lambda: reference(theirs, template, chat))


def test_a_refusal_is_among_the_compared_outcomes(smollm2_pair: Any) -> None:
    ours, theirs = smollm2_pair
    strict, chat = TEMPLATES["brackets, strict about turns"], CHATS["tools called"]
    with pytest.raises(ArgosyError, match="Turns must alternate") as caught:
        render(ours, theirs, strict, chat)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_FAILED


def test_token_ids_of_a_chat(smollm2_pair: Any) -> None:
    ours, theirs = smollm2_pair
    chat = CHATS["system and turns"]
    expected = theirs.apply_chat_template(messages(chat), add_generation_prompt=True, return_dict=False)
    assert ours.encode(ours.render_chat(chat), add_special_tokens=False) == expected


def outcome(rendering: Callable[[], str]) -> tuple[str, str]:
    try:
        return "text", rendering()
    except ArgosyError as error:
        return "refusal", error.metadata["detail"]
    except Exception as error:
        return "refusal", str(error)


def reference(theirs: Any, template: str | None, chat: Chat) -> str:
    return theirs.apply_chat_template(
        messages(chat),
        tools=functions(chat) or None,
        chat_template=template,
        add_generation_prompt=chat.add_generation_prompt,
        tokenize=False,
    )


def render(ours: Any, theirs: Any, template: str | None, chat: Chat) -> str:
    if template is None:
        return ours.render_chat(chat)
    return ChatTemplates("small", {"default": template}, theirs.special_tokens_map).render(chat)


def messages(chat: Chat) -> list[dict[str, Any]]:
    return [
        {
            "role": str(message.role),
            "content": message.content,
            **({"name": message.name} if message.name else {}),
            **({"tool_call_id": message.tool_call_id} if message.tool_call_id else {}),
            **({"tool_calls": [call_of(call) for call in message.tool_calls]} if message.tool_calls else {}),
        }
        for message in chat.messages
    ]


def call_of(call: ToolCall) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return named | ({"id": call.id} if call.id else {})


def functions(chat: Chat) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in chat.tools
    ]
