"""Every failure that a caller can meet, by reason. Knows nothing about gRPC: `rpc/status.py` maps reasons to codes."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a call failed. The values are those of `argosy.api.common.v1.ErrorReason` without their prefix."""

    INVALID_FIELD = "INVALID_FIELD"
    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    INPUT_TOO_LARGE = "INPUT_TOO_LARGE"
    TOO_MANY_INPUTS = "TOO_MANY_INPUTS"
    INVALID_GRAMMAR = "INVALID_GRAMMAR"
    CHAT_TEMPLATE_FAILED = "CHAT_TEMPLATE_FAILED"
    SOURCE_REFUSED = "SOURCE_REFUSED"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    ADAPTER_NOT_FOUND = "ADAPTER_NOT_FOUND"
    TOOL_NOT_FOUND = "TOOL_NOT_FOUND"
    ALIAS_NOT_FOUND = "ALIAS_NOT_FOUND"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    REQUEST_NOT_FOUND = "REQUEST_NOT_FOUND"
    ADAPTER_EXISTS = "ADAPTER_EXISTS"
    ADAPTER_NOT_READY = "ADAPTER_NOT_READY"
    ADAPTER_INVALID = "ADAPTER_INVALID"
    WRONG_BASE_MODEL = "WRONG_BASE_MODEL"
    ADAPTER_IN_USE = "ADAPTER_IN_USE"
    NOTHING_TO_ROLL_BACK = "NOTHING_TO_ROLL_BACK"
    ALIAS_CHANGED = "ALIAS_CHANGED"
    TOKENIZER_MISMATCH = "TOKENIZER_MISMATCH"
    CHAT_TEMPLATE_MISSING = "CHAT_TEMPLATE_MISSING"
    RUN_STATE = "RUN_STATE"
    QUEUE_FULL = "QUEUE_FULL"
    KV_CACHE_FULL = "KV_CACHE_FULL"
    ADAPTER_SLOTS_FULL = "ADAPTER_SLOTS_FULL"
    STARTING = "STARTING"
    DRAINING = "DRAINING"
    ENGINE_FAILED = "ENGINE_FAILED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    INVALID_CREDENTIALS = "INVALID_CREDENTIALS"
    NOT_PERMITTED = "NOT_PERMITTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    INTERNAL = "INTERNAL"


class ArgosyError(Exception):
    """A failure with a reason.

    `message` tells the caller what is wrong and what to do next. `metadata` holds the facts that a program can read;
    its keys are documented with each reason in `errors.proto`. `retry_after_s` is set where the same call may succeed
    later. Both may quote what callers and files say, so what UTF-8 or a database does not take is written as an escape.
    """

    def __init__(self, reason: Reason, message: str, *, retry_after_s: float | None = None, **metadata: object) -> None:
        message = _storable(message)
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata = {key: _storable(_short(value)) for key, value in metadata.items()}

    def __reduce__(self) -> tuple[object, ...]:
        """Lets Ray carry it between the processes of a cluster with its reason and facts."""
        return _rebuild, (self.reason, self.message, self.retry_after_s, self.metadata)


def _rebuild(reason: Reason, message: str, retry_after_s: float | None, metadata: dict[str, str]) -> ArgosyError:
    return ArgosyError(reason, message, retry_after_s=retry_after_s, **metadata)


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


def request_not_found(request_id: str, kept: int) -> ArgosyError:
    """Nothing is known of the request, or it is another key's."""
    return ArgosyError(
        Reason.REQUEST_NOT_FOUND,
        f"nothing is known of request '{_short(request_id)}'; give the request id of a generation, which its answer "
        f"and its trailing metadata have, with the API key that made it; a server keeps the latest {kept}",
        request_id=request_id,
        limit=kept,
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


def deadline_exceeded() -> ArgosyError:
    """The caller's deadline has passed."""
    return ArgosyError(
        Reason.DEADLINE_EXCEEDED, "the deadline passed before the answer was complete; allow more time or ask for less"
    )


def _storable(text: str) -> str:
    """JSON may hold halves of surrogate pairs, which UTF-8 has not, and NUL, which PostgreSQL's text has not."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
