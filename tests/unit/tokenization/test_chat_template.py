"""Templates that misbehave. That good ones render as in transformers is tested under tests/reference."""

from __future__ import annotations

import pytest

from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.backend import Tokenizer
from argosy_services.tokenization.chat_template import ChatTemplates
from argosy_services.tokenization.types import Chat, ChatMessage, Role, Tool

HELLO = Chat([ChatMessage(Role.USER, "Hello")])
WITH_TOOL = Chat(HELLO.messages, tools=[Tool("clock", "Tells the time.", {"type": "object"})])


def templates(source: str, **bounds: float) -> ChatTemplates:
    return ChatTemplates("small", {"default": source}, {"bos_token": "<s>"}, **bounds)


def failure(source: str, chat: Chat = HELLO, **bounds: float) -> ArgosyError:
    with pytest.raises(ArgosyError) as caught:
        templates(source, **bounds).render(chat)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_FAILED
    assert caught.value.metadata["field"] == "chat"
    assert caught.value.metadata["detail"]
    str(caught.value).encode()
    return caught.value


def test_the_bundled_template_renders(byte_level: Tokenizer) -> None:
    chat = Chat([ChatMessage(Role.SYSTEM, "Be brief."), ChatMessage(Role.USER, "Hello")])
    assert byte_level.render_chat(chat) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_generation_prompt_can_be_left_out(byte_level: Tokenizer) -> None:
    text = byte_level.render_chat(Chat(HELLO.messages, add_generation_prompt=False))
    assert text.endswith("user\nHello<|im_end|>\n")


def test_a_model_without_a_template_says_so(word_piece: Tokenizer) -> None:
    with pytest.raises(ArgosyError) as caught:
        word_piece.render_chat(HELLO)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_MISSING
    assert caught.value.metadata == {"model": word_piece.model}


def test_chats_with_tools_take_the_template_for_tools() -> None:
    both = ChatTemplates("small", {"default": "plain", "tool_use": "{{ tools[0].function.name }}"}, {})
    assert (both.render(HELLO), both.render(WITH_TOOL)) == ("plain", "clock")


def test_what_the_template_raises_reaches_the_caller() -> None:
    assert "no system message" in str(failure("{{ raise_exception('no system message, please') }}"))


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
        "{{ 'x'.encode('no such codec') }}",
        "{{ '\ud800' }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_a_template_that_breaks_is_an_error_of_its_own(source: str) -> None:
    failure(source)


def test_a_template_without_end_is_stopped() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    assert "seconds" in str(failure(endless, max_seconds=0.05))
    assert "characters" in str(failure(endless, max_characters=1000))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__name__ }}",
        "{{ ''.__class__.__mro__[1] }}",
        "{{ dict.__subclasses__()[0] }}",
        "{{ namespace.__init__.__globals__['x'] }}",
        "{{ raise_exception.__globals__['x'] }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace({'_x': 1}) %}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ messages.append(1) }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    failure(source)


def test_dictionaries_and_namespaces_are_there_for_templates() -> None:
    source = "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}"
    assert templates(source + "{{ ns.n }} {{ dict(a=1) | tojson }}").render(HELLO) == '3 {"a": 1}'
