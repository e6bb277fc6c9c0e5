"""Text as token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoded text. `byte_spans` (start, end) and `tokens` are empty unless asked for."""

    ids: tuple[int, ...]
    byte_spans: tuple[tuple[int, int], ...] = ()
    tokens: tuple[str, ...] = ()
    truncated_tokens: int = 0
    tokenizer_fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as the model sees it. `ids` is empty unless asked for."""

    text: str
    ids: tuple[int, ...]
    tokenizer_fingerprint: str


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token with a meaning of its own."""

    text: str
    id: int


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A served model's tokenizer. Two tokenizers with one fingerprint give the same ids and the same text."""

    model: str
    fingerprint: str
    vocabulary_size: int
    special_tokens: tuple[SpecialToken, ...]
    has_chat_template: bool
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    max_context_tokens: int
