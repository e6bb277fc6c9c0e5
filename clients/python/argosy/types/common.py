"""What more than one area speaks of: conversations, usage, timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as the model asked for it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation. `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str = ""
    name: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the chat template announces. `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


Message: TypeAlias = ChatMessage | Mapping[str, Any]
"""A chat message, or a dict with the same keys: `{"role": "user", "content": "Hello"}`."""

Prompt: TypeAlias = str | Sequence[Message] | Sequence[int]
"""A prompt as text, as a conversation (oldest message first) or as token ids."""

TextOrTokens: TypeAlias = str | Sequence[int]
"""A text, or its token ids."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call consumed. `cached_tokens` of `prompt_tokens` came from the prefix cache."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went on the server. None: the service has no such stage."""

    tokenization: float | None = None
    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answered. An empty `adapter` means the base model; `adapter_version` is a content hash."""

    request_id: str = ""
    model: str = ""
    adapter: str = ""
    adapter_version: str = ""
