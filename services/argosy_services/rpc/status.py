"""The one table from reasons to gRPC codes, and how an error is written into a call's status."""

from __future__ import annotations

from typing import Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from argosy_services.errors import ArgosyError, Reason

DOMAIN = "argosy"
DETAILS_KEY = "grpc-status-details-bin"

# Clients refuse trailers of more than 8 KiB, and a message travels in them three times, once percent-encoded.
_MESSAGE_BYTES = 800
_METADATA_BYTES = 200

CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MALFORMED_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.PROMPT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.INPUT_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TOO_MANY_INPUTS: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.INVALID_GRAMMAR: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CHAT_TEMPLATE_FAILED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.SOURCE_REFUSED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ADAPTER_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.TOOL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ALIAS_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.RUN_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.REQUEST_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ADAPTER_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.ADAPTER_NOT_READY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ADAPTER_INVALID: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.WRONG_BASE_MODEL: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ADAPTER_IN_USE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOTHING_TO_ROLL_BACK: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ALIAS_CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TOKENIZER_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CHAT_TEMPLATE_MISSING: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RUN_STATE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.KV_CACHE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ADAPTER_SLOTS_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.STARTING: grpc.StatusCode.UNAVAILABLE,
    Reason.DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.ENGINE_FAILED: grpc.StatusCode.UNAVAILABLE,
    Reason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.INVALID_CREDENTIALS: grpc.StatusCode.UNAUTHENTICATED,
    Reason.NOT_PERMITTED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.NOT_SUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}


class StatusContext(Protocol):
    """What grpc.aio's and Ray Serve's contexts have in common for ending a call."""

    def set_code(self, code: grpc.StatusCode) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None: ...


def details(error: ArgosyError) -> status_pb2.Status:
    """The rich form of an error: ErrorInfo always, BadRequest and RetryInfo where they say something."""
    code = CODES[error.reason]
    message = _bounded(error.message, _MESSAGE_BYTES)
    metadata = {key: _bounded(value, _METADATA_BYTES) for key, value in error.metadata.items()}
    status = status_pb2.Status(code=code.value[0], message=message)
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=metadata.get("field", ""), description=message, reason=error.reason
        )
        _pack(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def write(context: StatusContext, error: ArgosyError, request_id: str) -> None:
    """Ends a call with an error. The caller then returns or yields an empty message: Ray Serve loses the details of a
    raised exception (docs/adr/0003).
    """
    status = details(error)
    context.set_code(CODES[error.reason])
    context.set_details(status.message)
    # A list, because Ray Serve puts it behind one of its own.
    context.set_trailing_metadata([("x-request-id", request_id), (DETAILS_KEY, status.SerializeToString())])


def _bounded(text: str, size: int) -> str:
    """At most `size` bytes of valid UTF-8: a message may quote file names and other programs' words."""
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= size else raw[: size - 3].decode(errors="ignore") + "..."


def _pack(
    status: status_pb2.Status,
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> None:
    packed = any_pb2.Any()
    packed.Pack(message)
    status.details.append(packed)
