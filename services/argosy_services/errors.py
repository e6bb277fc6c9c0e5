"""Every failure that a caller can meet, by reason. Knows nothing about gRPC: `rpc/status.py` maps reasons to codes."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a call failed. The values are those of `argosy.api.common.v1.ErrorReason` without their prefix."""

    INVALID_FIELD = enum.auto()
    MALFORMED_MESSAGE = enum.auto()
    PROMPT_TOO_LONG = enum.auto()
    INPUT_TOO_LARGE = enum.auto()
    TOO_MANY_INPUTS = enum.auto()
    INVALID_GRAMMAR = enum.auto()
    CHAT_TEMPLATE_FAILED = enum.auto()
    SOURCE_REFUSED = enum.auto()
    MODEL_NOT_FOUND = enum.auto()
    ADAPTER_NOT_FOUND = enum.auto()
    TOOL_NOT_FOUND = enum.auto()
    ADAPTER_EXISTS = enum.auto()
    ADAPTER_NOT_READY = enum.auto()
    ADAPTER_INVALID = enum.auto()
    WRONG_BASE_MODEL = enum.auto()
    TOKENIZER_MISMATCH = enum.auto()
    CHAT_TEMPLATE_MISSING = enum.auto()
    QUEUE_FULL = enum.auto()
    KV_CACHE_FULL = enum.auto()
    ADAPTER_SLOTS_FULL = enum.auto()
    STARTING = enum.auto()
    DRAINING = enum.auto()
    ENGINE_FAILED = enum.auto()
    INVALID_CREDENTIALS = enum.auto()
    DEADLINE_EXCEEDED = enum.auto()
    NOT_SUPPORTED = enum.auto()
    INTERNAL = enum.auto()

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name


class ArgosyError(Exception):
    """A failure with a reason.

    `message` tells the caller what is wrong and what to do next. `metadata` holds the facts that a program can read;
    its keys are documented with each reason in `errors.proto`. `retry_after_s` is set where the same call may succeed
    later.
    """

    def __init__(
        self, reason: Reason, message: str, *, retry_after_s: float | None = None, **metadata: object
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = {key: _short(value) for key, value in metadata.items()}


def invalid_field(field: str, problem: str, *, limit: object, value: object) -> ArgosyError:
    """A field is missing or out of range: `problem` completes the sentence "<field> ..."."""
    return ArgosyError(
        Reason.INVALID_FIELD,
        f"{field} {problem} (limit: {_short(limit)}, given: {_short(value)})",
        field=field,
        limit=limit,
        value=value,
    )


def too_many_inputs(field: str, *, limit: int, value: int) -> ArgosyError:
    """More inputs than one call takes."""
    return ArgosyError(
        Reason.TOO_MANY_INPUTS,
        f"{field} holds {value} inputs, at most {limit} fit one call; send them in several calls",
        field=field,
        limit=limit,
        value=value,
    )


def input_too_large(field: str, *, limit: int, value: int) -> ArgosyError:
    """A text of more bytes than allowed."""
    return ArgosyError(
        Reason.INPUT_TOO_LARGE,
        f"{field} has {value} bytes, at most {limit} are allowed",
        field=field,
        limit=limit,
        value=value,
    )


def prompt_too_long(field: str, *, limit: int, value: int) -> ArgosyError:
    """More tokens than the context holds."""
    return ArgosyError(
        Reason.PROMPT_TOO_LONG,
        f"{field} needs {value} tokens, at most {limit} fit",
        field=field,
        limit=limit,
        value=value,
    )


def model_not_found(model: str, known: list[str]) -> ArgosyError:
    """No such model is served."""
    return ArgosyError(
        Reason.MODEL_NOT_FOUND,
        f"model '{_short(model)}' is not served here; served: {', '.join(known) or 'none'}",
        model=model,
    )


def adapter_not_found(adapter: str) -> ArgosyError:
    """No such adapter is registered."""
    return ArgosyError(
        Reason.ADAPTER_NOT_FOUND,
        f"adapter '{_short(adapter)}' is not loaded; load it with LoadAdapter or `argosy adapters load`",
        adapter=adapter,
    )


def tokenizer_mismatch(model: str, *, expected: str, value: str) -> ArgosyError:
    """The caller tokenized with another tokenizer than the model's."""
    return ArgosyError(
        Reason.TOKENIZER_MISMATCH,
        f"the request was made with tokenizer {_short(value)}, model '{model}' has {expected}; "
        "fetch the present tokenizer with GetTokenizer",
        model=model,
        expected=expected,
        value=value,
    )


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
