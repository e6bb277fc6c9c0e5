"""Chats to prompts through the Jinja template of a checkpoint.

Templates are written for the environment that transformers gives them, so this one is the same: a sandbox, blocks
trimmed, loop controls, and the names `raise_exception`, `strftime_now` and `tojson`. A template comes with the model,
never from a caller. What it may write is bounded all the same, in size and time: a loop or a recursion without end
becomes an error.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from argosy_services.errors import ArgosyError, Reason
from argosy_services.tokenization.types import Chat, ChatMessage, Tool, ToolCall

_MAX_SECONDS = 5.0
_MAX_CHARACTERS = 64 << 20
_DEFAULT = "default"
_FOR_TOOLS = "tool_use"


class ChatTemplates:
    """The chat templates of one model: "default", and where it has one, "tool_use" for chats with tools."""

    def __init__(
        self,
        model: str,
        sources: Mapping[str, str],
        named_tokens: Mapping[str, str],
        *,
        max_seconds: float = _MAX_SECONDS,
        max_characters: int = _MAX_CHARACTERS,
    ) -> None:
        """`named_tokens` are the special tokens that templates may name, such as `bos_token`."""
        self._model = model
        self._sources = sources
        self._named_tokens = named_tokens
        self._max_seconds = max_seconds
        self._max_characters = max_characters
        self._environment = _environment()
        self._compiled: dict[str, jinja2.Template] = {}

    @functools.cached_property
    def announce_tools(self) -> bool:
        """Whether a template has a place for tools."""
        source = self._sources.get(_FOR_TOOLS) or self._sources.get(_DEFAULT, "")
        return "tools" in jinja2.meta.find_undeclared_variables(self._environment.parse(source))

    def render(self, chat: Chat) -> str:
        """The prompt. Raises CHAT_TEMPLATE_MISSING where there is no template, CHAT_TEMPLATE_FAILED where it refuses
        the chat or breaks.
        """
        name = _FOR_TOOLS if chat.tools and _FOR_TOOLS in self._sources else _DEFAULT
        if name not in self._sources:
            raise ArgosyError(
                Reason.CHAT_TEMPLATE_MISSING,
                f"model '{self._model}' has no chat template; render the prompt yourself and send it as text",
                model=self._model,
            )
        try:
            pieces = self._template(name).generate(
                **self._named_tokens,
                messages=[_message(message) for message in chat.messages],
                tools=[_tool(tool) for tool in chat.tools] or None,
                documents=None,
                add_generation_prompt=chat.add_generation_prompt,
            )
            prompt = "".join(self._bounded(pieces))
            prompt.encode()
        except Exception as error:  # a template can raise anything
            raise _failed(self._model, error) from error
        return prompt

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            self._compiled[name] = self._environment.from_string(self._sources[name])
        return self._compiled[name]

    def _bounded(self, pieces: Iterator[str]) -> Iterator[str]:
        deadline = time.monotonic() + self._max_seconds
        characters = 0
        for piece in pieces:
            characters += len(piece)
            if characters > self._max_characters:
                raise jinja2.TemplateError(f"it wrote more than {self._max_characters} characters")
            if time.monotonic() > deadline:
                raise jinja2.TemplateError(f"it ran for more than {self._max_seconds:g} seconds")
            yield piece


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; in a prompt it stands for what is inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Variables that outlive a loop; names with a leading underscore are refused."""

    def __init__(*args: Any, **names: Any) -> None:
        Namespace.__init__(*args, **names)
        for name in dict(*args[1:], **names):
            _refuse_private(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    # Jinja gives templates the class `dict` and namespaces that hold any attribute: both are ways out of the sandbox.
    environment.globals["dict"] = _new_dict
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _failed(model: str, error: Exception) -> ArgosyError:
    detail = str(error) or type(error).__name__
    return ArgosyError(
        Reason.CHAT_TEMPLATE_FAILED,
        f"the chat template of '{model}' cannot render this chat: {detail}",
        field="chat",
        detail=detail,
    )


def _new_dict(*args: Any, **entries: Any) -> dict[Any, Any]:
    return dict(*args, **entries)


def _refuse_private(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the HTML escapes of Jinja's own filter, which models were not trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _message(message: ChatMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.name:
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _tool_call(call: ToolCall) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    if call.id:
        fields["id"] = call.id
    return fields


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
