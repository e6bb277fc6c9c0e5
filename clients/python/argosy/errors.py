"""Every failure that a call can end with. No `grpc.RpcError` ever reaches a caller.

ArgosyError
├── InvalidRequestError            INVALID_ARGUMENT, OUT_OF_RANGE: change the request
│   ├── PromptTooLongError         prompt and completion do not fit the context
│   ├── InputTooLargeError         a text has too many bytes
│   ├── TooManyInputsError         too many inputs in one call
│   ├── InvalidGrammarError        a JSON schema, regular expression or grammar cannot be used
│   ├── ChatTemplateError          the chat template refused the messages
│   └── SourceRefusedError         an adapter's source is outside the allowed places
├── NotFoundError                  NOT_FOUND
│   ├── ModelNotFoundError
│   ├── AdapterNotFoundError
│   ├── ToolNotFoundError
│   ├── AliasNotFoundError
│   ├── RunNotFoundError
│   └── RequestNotFoundError       nothing is known of the request any more
├── AlreadyExistsError             ALREADY_EXISTS
│   └── AdapterExistsError         the name is taken by an adapter with other content
├── FailedPreconditionError        FAILED_PRECONDITION: something else must change first
│   ├── AdapterNotReadyError       the adapter cannot answer in its present state
│   ├── AdapterInvalidError        the adapter's files cannot be served
│   ├── WrongBaseModelError        the adapter was trained for another model
│   ├── AdapterInUseError          an alias points at it
│   ├── NothingToRollBackError     the alias has no former state
│   ├── AliasChangedError          somebody else has set the alias
│   ├── TokenizerMismatchError     the caller's tokenizer is not the model's
│   ├── ChatTemplateMissingError   the model has no chat template
│   └── RunStateError              the agent run cannot do this where it stands
├── ResourceExhaustedError         RESOURCE_EXHAUSTED
│   ├── QueueFullError             too many requests wait already
│   ├── KVCacheFullError           the sequence can never fit in the key-value cache
│   └── AdapterSlotsFullError      every adapter slot is taken
├── UnavailableError               UNAVAILABLE: try again later or elsewhere
│   ├── ConnectError               no connection to the server; nothing was started
│   ├── ServerStartingError        the server is loading its weights
│   ├── ServerDrainingError        the server is shutting down
│   ├── EngineFailedError          the engine stopped after a fatal fault
│   └── StoreUnavailableError      the server's database cannot be used
├── AuthenticationError            UNAUTHENTICATED: no valid API key
├── PermissionDeniedError          PERMISSION_DENIED: the API key may not ask for this
├── DeadlineExceededError          DEADLINE_EXCEEDED; also a built-in TimeoutError
├── CallCancelledError             CANCELLED, by something between here and the server
├── AbortedError                   ABORTED
├── NotSupportedError              UNIMPLEMENTED on this server
└── ServerError                    INTERNAL, UNKNOWN, DATA_LOSS: a fault of the server
    └── ProtocolError              the server's answer breaks the contract, for instance a stream without its end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request. `field` is its path in the schema, such as `sampling.top_p`."""

    field: str
    description: str
    reason: str = ""


class ArgosyError(Exception):
    """A call failed.

    `message` says what is wrong and what to do next. `reason` is the name of an `argosy.api.common.v1.ErrorReason`
    value without its prefix, empty where the failure did not come from an Argosy server; `metadata` holds the facts
    that belong to it. `retry_after` is in seconds, None where the server promises nothing. `request_id` finds the call
    in the server's log.
    """

    code = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = field_violations
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        facts = [self.reason or self.code.name]
        if self.request_id:
            facts.append(f"request id {self.request_id}")
        return f"{self.message} ({', '.join(facts)})"


class InvalidRequestError(ArgosyError):
    """The request must be changed; `field_violations` says where."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class PromptTooLongError(InvalidRequestError):
    """Prompt and requested completion do not fit the context. `metadata`: field, limit, value (tokens)."""


class InputTooLargeError(InvalidRequestError):
    """A text or the whole request has too many bytes. `metadata`: field, limit, value (bytes)."""


class TooManyInputsError(InvalidRequestError):
    """Too many inputs in one call; send them in several. `metadata`: field, limit, value (count)."""


class InvalidGrammarError(InvalidRequestError):
    """A JSON schema, regular expression or grammar cannot be used. `metadata`: field, detail."""


class ChatTemplateError(InvalidRequestError):
    """The model's chat template refused the messages. `metadata`: field, detail."""


class SourceRefusedError(InvalidRequestError):
    """An adapter's source is outside the places that the server allows. `metadata`: field, value."""


class NotFoundError(ArgosyError):
    """Something that the request names is not there."""

    code = grpc.StatusCode.NOT_FOUND


class ModelNotFoundError(NotFoundError):
    """The model is not served. `metadata`: model."""


class AdapterNotFoundError(NotFoundError):
    """The adapter is not loaded. `metadata`: adapter."""


class ToolNotFoundError(NotFoundError):
    """The server has no such tool. `metadata`: tool."""


class AliasNotFoundError(NotFoundError):
    """No such alias of adapters. `metadata`: alias."""


class RunNotFoundError(NotFoundError):
    """The server has no such agent run, or it is another key's. `metadata`: run_id."""


class RequestNotFoundError(NotFoundError):
    """Nothing is known of the request any more, or it is another key's. `metadata`: request_id, limit."""


class AlreadyExistsError(ArgosyError):
    """Something of that name is there already."""

    code = grpc.StatusCode.ALREADY_EXISTS


class AdapterExistsError(AlreadyExistsError):
    """The name is taken by an adapter with other content. `metadata`: adapter."""


class FailedPreconditionError(ArgosyError):
    """The request is right but something else must change first; repeating it does not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class RunStateError(FailedPreconditionError):
    """The agent run cannot do this where it stands. `metadata`: run_id, state."""


class AdapterNotReadyError(FailedPreconditionError):
    """The adapter is known but cannot answer in its present state. `metadata`: adapter, state."""


class AdapterInvalidError(FailedPreconditionError):
    """The adapter's files cannot be served. `metadata`: adapter, detail."""


class WrongBaseModelError(FailedPreconditionError):
    """The adapter was trained for another base model. `metadata`: adapter, expected, value."""


class AdapterInUseError(FailedPreconditionError):
    """An alias points at the adapter: point it elsewhere first. `metadata`: adapter, alias."""


class NothingToRollBackError(FailedPreconditionError):
    """The alias has no former state. `metadata`: alias."""


class AliasChangedError(FailedPreconditionError):
    """Somebody else has set the alias meanwhile. `metadata`: alias, expected, value."""


class TokenizerMismatchError(FailedPreconditionError):
    """The caller's tokenizer is not the model's. `metadata`: model, expected, value."""


class ChatTemplateMissingError(FailedPreconditionError):
    """The model has no chat template: send text or token ids. `metadata`: model."""


class ResourceExhaustedError(ArgosyError):
    """The server has no room for the request."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QueueFullError(ResourceExhaustedError):
    """Too many requests wait already; `retry_after` says when to come back. `metadata`: limit, value."""


class KVCacheFullError(ResourceExhaustedError):
    """The sequence can never fit in the key-value cache. `metadata`: limit, value (tokens)."""


class AdapterSlotsFullError(ResourceExhaustedError):
    """Every adapter slot is taken: unload one. `metadata`: limit."""


class UnavailableError(ArgosyError):
    """The server cannot answer now."""

    code = grpc.StatusCode.UNAVAILABLE


class ConnectError(UnavailableError):
    """There is no connection to the server. Nothing was started."""


class ServerStartingError(UnavailableError):
    """The server is loading its weights; see `Client.wait_until_ready`."""


class ServerDrainingError(UnavailableError):
    """The server finishes what runs and takes nothing new."""


class EngineFailedError(UnavailableError):
    """The engine stopped after a fatal fault."""


class StoreUnavailableError(UnavailableError):
    """The server's database cannot be used; generation goes on meanwhile."""


class AuthenticationError(ArgosyError):
    """The call carries no valid API key."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ArgosyError):
    """The API key may not ask for this. `metadata`: field, limit, value."""

    code = grpc.StatusCode.PERMISSION_DENIED


class DeadlineExceededError(ArgosyError, TimeoutError):
    """The deadline passed before the answer was complete."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CallCancelledError(ArgosyError):
    """The call was cancelled, but not by its caller: a proxy or a dying server did it."""

    code = grpc.StatusCode.CANCELLED


class AbortedError(ArgosyError):
    """The call lost against another one."""

    code = grpc.StatusCode.ABORTED


class NotSupportedError(ArgosyError):
    """The method or option does not exist on this server. `metadata`: detail."""

    code = grpc.StatusCode.UNIMPLEMENTED


class ServerError(ArgosyError):
    """A fault of the server; its log has the cause under `request_id`."""

    code = grpc.StatusCode.INTERNAL


class ProtocolError(ServerError):
    """The server's answer breaks the contract, for instance a stream that ends well without its last event."""
