"""What gateways and engines say to each other: a closed set of messages for each direction, as MessagePack.

Reading makes values of exactly these types and never runs what it reads. Values inside them are not checked: that the
other end belongs to the fleet is proved before it is heard (`wire`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from argosy_services.engine.base import Request, StepOutput
from argosy_services.errors import ArgosyError, Reason

MAX_BYTES = 64 << 20
"""Longest message. The largest request that a gRPC message of default size can hold takes half of it."""


class MessageRefusedError(Exception):
    """What must not travel between processes of a fleet, whichever end it is met at."""


class Run(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Has an engine run a sequence."""

    request: Request


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Has an engine free a sequence; no output follows."""

    request_id: str


class Outputs(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All that is new for a gateway."""

    outputs: list[StepOutput]


ToEngine = Run | Cancel
ToGateway = Outputs


class _Failure(msgspec.Struct, frozen=True, array_like=True):
    """An `ArgosyError` as it travels."""

    reason: Reason
    message: str
    retry_after_s: float | None
    metadata: dict[str, str]


def encode(message: ToEngine | ToGateway) -> bytes:
    """Raises MessageRefusedError where it would be longer than MAX_BYTES or holds what MessagePack cannot."""
    try:
        data = _ENCODER.encode(message)
    except (msgspec.MsgspecError, TypeError, UnicodeError, OverflowError) as error:
        raise MessageRefusedError(f"{type(message).__name__} cannot be sent: {error}") from error
    check_length(len(data))
    return data


def read_to_engine(data: bytes) -> ToEngine:
    """Raises MessageRefusedError."""
    return _read(_TO_ENGINE.decode, data)


def read_to_gateway(data: bytes) -> ToGateway:
    """Raises MessageRefusedError."""
    return _read(_TO_GATEWAY.decode, data)


def check_length(length: int) -> None:
    """Raises MessageRefusedError where a message of that many bytes is too long."""
    if length > MAX_BYTES:
        raise MessageRefusedError(f"a message of {length} bytes is too long: at most {MAX_BYTES} are allowed")


def _read(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageRefusedError(f"what came is not a message: {error}") from error


def _to_builtin(value: object) -> _Failure:
    if not isinstance(value, ArgosyError):
        raise TypeError(f"'{type(value).__name__}' does not travel between processes of a fleet")
    return _Failure(value.reason, value.message, value.retry_after_s, value.metadata)


def _from_builtin(_: type, value: object) -> ArgosyError:
    failure = msgspec.convert(value, _Failure)
    return ArgosyError(failure.reason, failure.message, retry_after_s=failure.retry_after_s, **failure.metadata)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_builtin)
_TO_ENGINE = msgspec.msgpack.Decoder(ToEngine, dec_hook=_from_builtin)
_TO_GATEWAY = msgspec.msgpack.Decoder(ToGateway, dec_hook=_from_builtin)
