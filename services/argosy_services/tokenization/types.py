"""The vocabulary of tokenization."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Role(enum.StrEnum):
    """Who speaks in a chat message, as chat templates spell it."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is the parsed JSON object."""

    name: str
    arguments: dict[str, object]
    id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: Role
    content: str
    name: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a template announces; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, object]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation to be rendered through a chat template."""

    messages: Sequence[ChatMessage]
    tools: Sequence[Tool] = ()
    add_generation_prompt: bool = True


class TruncationSide(enum.Enum):
    """Which end of a text is dropped when it is too long."""

    RIGHT = "right"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoded text. `byte_spans` (start, end) and `tokens` are empty unless asked for."""

    ids: list[int]
    byte_spans: list[tuple[int, int]]
    tokens: list[str]
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token with a meaning of its own."""

    text: str
    id: int


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What a tokenizer is; see `Tokenizer` in tokenizer.proto."""

    model: str
    fingerprint: str
    vocabulary_size: int
    special_tokens: tuple[SpecialToken, ...]
    has_chat_template: bool
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class FileStart:
    """The beginning of a file in a stream of files. `sha256` is that of the whole file, in hexadecimal."""

    name: str
    size_bytes: int
    sha256: str
