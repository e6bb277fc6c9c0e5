"""From a prompt in any form to token ids that fit the model's context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from argosy_services.engine.base import EngineInfo
from argosy_services.errors import invalid_field, prompt_too_long
from argosy_services.generation.options import check_ids
from argosy_services.generation.types import ChatPrompt, Options, Prompt
from argosy_services.rpc import validate
from argosy_services.tokenization.backend import Tokenizer

T = TypeVar("T")

MAX_TEXT_BYTES = 4 << 20

_FIELD = "spec.prompt"
# Below this, tokenizing takes less than handing the work to a thread and back may.
_INLINE_CHARACTERS = 2048
# What a message adds to a rendered chat beside its text, about.
_CHARACTERS_PER_MESSAGE = 128


async def prompt_ids(prompt: Prompt, tokenizer: Tokenizer, info: EngineInfo) -> list[int]:
    """The prompt's token ids: at least one, and at least one fewer than the context holds.

    Raises INVALID_FIELD, INPUT_TOO_LARGE, PROMPT_TOO_LONG, CHAT_TEMPLATE_MISSING or CHAT_TEMPLATE_FAILED.
    """
    if isinstance(prompt, tuple):
        check_context(_FIELD, len(prompt) + 1, info)
        check_ids("spec.tokens", prompt, info)
        ids = list(prompt)
    elif isinstance(prompt, ChatPrompt):
        ids = await off_loop(_characters(prompt), lambda: _encode_chat(tokenizer, prompt))
    else:
        validate.text_size("spec.text", prompt, limit_bytes=MAX_TEXT_BYTES)
        ids = await off_loop(len(prompt), lambda: tokenizer.encode(prompt))
    if not ids:
        raise invalid_field(_FIELD, "must not be empty", limit="at least 1 token", value=0)
    check_context(_FIELD, len(ids) + 1, info)
    return ids


def check_context(field: str, needed: int, info: EngineInfo) -> None:
    """Raises PROMPT_TOO_LONG where a sequence of `needed` tokens exceeds the context."""
    if needed > info.max_context_tokens:
        raise prompt_too_long(field, limit=info.max_context_tokens, value=needed)


def max_tokens(options: Options, prompt_tokens: int, info: EngineInfo) -> int:
    """How many tokens may be generated. Raises PROMPT_TOO_LONG where the context holds fewer than were asked for."""
    asked = options.max_tokens
    if asked is None:
        return info.max_context_tokens - prompt_tokens
    check_context(_FIELD, prompt_tokens + asked, info)
    return asked


async def off_loop(characters: int, work: Callable[[], T]) -> T:
    """Runs blocking work on a text, on another thread unless the text is short."""
    return work() if characters <= _INLINE_CHARACTERS else await asyncio.to_thread(work)


def _encode_chat(tokenizer: Tokenizer, prompt: ChatPrompt) -> list[int]:
    text = tokenizer.render_chat(prompt.chat) + prompt.prefix
    validate.text_size("spec.chat", text, limit_bytes=MAX_TEXT_BYTES)
    return tokenizer.encode(text, add_special_tokens=False)


def _characters(prompt: ChatPrompt) -> int:
    if prompt.chat.tools or any(message.tool_calls for message in prompt.chat.messages):
        # Schemas and arguments may have any length, which only writing them would tell.
        return _INLINE_CHARACTERS + 1
    texts = sum(len(message.content) + _CHARACTERS_PER_MESSAGE for message in prompt.chat.messages)
    return texts + len(prompt.prefix)
