"""The one way from a gRPC status to an exception: a total table of codes, refined by `ErrorInfo.reason`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from argosy import errors
from argosy.errors import ArgosyError, FieldViolation

DOMAIN = "argosy"
_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"

CLASS_OF_CODE: dict[grpc.StatusCode, type[ArgosyError]] = {
    grpc.StatusCode.CANCELLED: errors.CallCancelledError,
    grpc.StatusCode.UNKNOWN: errors.ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    grpc.StatusCode.ABORTED: errors.AbortedError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotSupportedError,
    grpc.StatusCode.INTERNAL: errors.ServerError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DATA_LOSS: errors.ServerError,
    grpc.StatusCode.UNAUTHENTICATED: errors.AuthenticationError,
}

CLASS_OF_REASON: dict[str, type[ArgosyError]] = {
    "INVALID_FIELD": errors.InvalidRequestError,
    "MALFORMED_MESSAGE": errors.InvalidRequestError,
    "PROMPT_TOO_LONG": errors.PromptTooLongError,
    "INPUT_TOO_LARGE": errors.InputTooLargeError,
    "TOO_MANY_INPUTS": errors.TooManyInputsError,
    "INVALID_GRAMMAR": errors.InvalidGrammarError,
    "CHAT_TEMPLATE_FAILED": errors.ChatTemplateError,
    "SOURCE_REFUSED": errors.SourceRefusedError,
    "MODEL_NOT_FOUND": errors.ModelNotFoundError,
    "ADAPTER_NOT_FOUND": errors.AdapterNotFoundError,
    "TOOL_NOT_FOUND": errors.ToolNotFoundError,
    "ALIAS_NOT_FOUND": errors.AliasNotFoundError,
    "RUN_NOT_FOUND": errors.RunNotFoundError,
    "REQUEST_NOT_FOUND": errors.RequestNotFoundError,
    "RUN_STATE": errors.RunStateError,
    "ADAPTER_EXISTS": errors.AdapterExistsError,
    "ADAPTER_NOT_READY": errors.AdapterNotReadyError,
    "ADAPTER_INVALID": errors.AdapterInvalidError,
    "WRONG_BASE_MODEL": errors.WrongBaseModelError,
    "ADAPTER_IN_USE": errors.AdapterInUseError,
    "NOTHING_TO_ROLL_BACK": errors.NothingToRollBackError,
    "ALIAS_CHANGED": errors.AliasChangedError,
    "TOKENIZER_MISMATCH": errors.TokenizerMismatchError,
    "CHAT_TEMPLATE_MISSING": errors.ChatTemplateMissingError,
    "QUEUE_FULL": errors.QueueFullError,
    "KV_CACHE_FULL": errors.KVCacheFullError,
    "ADAPTER_SLOTS_FULL": errors.AdapterSlotsFullError,
    "STARTING": errors.ServerStartingError,
    "DRAINING": errors.ServerDrainingError,
    "ENGINE_FAILED": errors.EngineFailedError,
    "STORE_UNAVAILABLE": errors.StoreUnavailableError,
    "INVALID_CREDENTIALS": errors.AuthenticationError,
    "NOT_PERMITTED": errors.PermissionDeniedError,
    "DEADLINE_EXCEEDED": errors.DeadlineExceededError,
    "NOT_SUPPORTED": errors.NotSupportedError,
    "INTERNAL": errors.ServerError,
}

# gRPC has no flag for "the request never left": its own words are the only sign (tests/unit/sdk/test_retry.py).
_NEVER_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")

# Ray Serve's proxy says so of a fleet's service for a moment after it was started again (tests/cluster).
_SOON_S = 0.1
_NO_APPLICATION = re.compile(r"Application '(\w+)' not found")


class RpcStatus(Protocol):
    """What the exceptions of grpc and grpc.aio have in common."""

    def code(self) -> grpc.StatusCode | None: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def error_class(code: grpc.StatusCode, reason: str) -> type[ArgosyError]:
    """The exception for a status. A reason that is unknown, or does not belong to the code, leaves the code's class."""
    general = CLASS_OF_CODE[code]
    special = CLASS_OF_REASON.get(reason, general)
    return special if issubclass(special, general) else general


def error_of_reason(reason: str, message: str, **metadata: str) -> ArgosyError:
    """The exception for a failure that was reported inside a resource, such as a failed adapter."""
    kind = CLASS_OF_REASON.get(reason, errors.FailedPreconditionError)
    return kind(message, reason=reason, metadata=metadata)


def to_error(status: RpcStatus, *, address: str, request_id: str) -> ArgosyError:
    """Reads the status of a failed call."""
    code = status.code() or grpc.StatusCode.UNKNOWN
    message = status.details() or f"the call failed with {code.name}"
    # Not dict(): to that the metadata of grpc.aio looks like a mapping whose keys are pairs.
    trailers = {key: value for key, value in status.trailing_metadata() or ()}  # noqa: C416
    if code is grpc.StatusCode.UNAVAILABLE and message.startswith(_NEVER_CONNECTED):
        why = message.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
        return errors.ConnectError(
            f"no connection to {address} ({why}): start a server with `argosy serve`, or set ARGOSY_ADDRESS",
            request_id=request_id,
        )
    details = _read_details(trailers.get(_DETAILS_KEY))
    if code is grpc.StatusCode.NOT_FOUND and not details.info.reason and (missing := _NO_APPLICATION.match(message)):
        return errors.ServerStartingError(
            f"the fleet at {address} does not serve {missing[1]} now; `argosy status` shows whether it will",
            code=code,
            retry_after=_SOON_S,
            request_id=request_id,
        )
    return error_class(code, details.info.reason)(
        message,
        code=code,
        reason=details.info.reason,
        metadata=details.info.metadata,
        field_violations=details.violations,
        retry_after=details.retry_after,
        request_id=str(trailers.get(_REQUEST_ID_KEY, request_id)),
    )


@dataclass(slots=True)
class _Details:
    info: error_details_pb2.ErrorInfo = field(default_factory=error_details_pb2.ErrorInfo)
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None


def _read_details(packed: str | bytes | None) -> _Details:
    details = _Details()
    if not isinstance(packed, bytes):
        return details
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            _read_detail(detail, details)
    except DecodeError:
        # Details are extra: the code and the message still tell the caller what happened.
        return _Details()
    return details


def _read_detail(detail: any_pb2.Any, into: _Details) -> None:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        if info.domain == DOMAIN:
            into.info = info
    elif detail.Unpack(bad):
        into.violations = tuple(FieldViolation(v.field, v.description, v.reason) for v in bad.field_violations)
    elif detail.Unpack(retry):
        into.retry_after = max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
