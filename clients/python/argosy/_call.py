"""The life of one call, without any I/O: its id, its deadline, and whether it is tried again after a failure."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from google.protobuf.message import Message

from argosy._channel import DEFAULT_TIMEOUTS
from argosy._config import Config, check_timeout
from argosy._metadata import Metadata, make_metadata, make_request_id
from argosy._status import RpcStatus, to_error
from argosy._tracing import CallSpan
from argosy.errors import (
    ArgosyError,
    CallCancelledError,
    ConnectError,
    EngineFailedError,
    ResourceExhaustedError,
    UnavailableError,
)

# They only compute: asking again costs time and changes nothing. An agent's tools may do more.
_REPEATABLE = ("tokenization", "embeddings", "generation")


class Deadline:
    """A time that the whole of something must end by. None seconds: never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None or math.isinf(seconds) else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds left, not below 0; None without end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def timeout(self) -> float:
        """Seconds left as a `timeout` for another call: a moment at least, `math.inf` without end."""
        remaining = self.remaining()
        return math.inf if remaining is None else max(0.001, remaining)


def choose_timeout(given: float | None, config: Config, default: float) -> float:
    """What the call says, else what the client says, else the default."""
    if given is not None:
        return check_timeout(given)
    return default if config.timeout is None else config.timeout


class CallPlan:
    """One call of a caller, over all its attempts."""

    def __init__(self, config: Config, area: str, *, timeout: float | None, request_id: str | None) -> None:
        self.request_id = make_request_id(request_id)
        self._config = config
        self._area = area
        self._deadline = Deadline(choose_timeout(timeout, config, DEFAULT_TIMEOUTS[area]))
        self._failures = 0
        self._lost = False
        self._span: CallSpan | None = None

    def begin(self, request: Any) -> None:
        """The call with `request` begins; to be said once, before its first attempt."""
        if self._config.trace and isinstance(request, Message):
            self._span = CallSpan(_method(request), self.request_id)

    def finish(self, error: ArgosyError | None = None) -> None:
        """The call is over; only the first time counts."""
        if self._span is not None:
            self._span.end("" if error is None else error.reason or type(error).__name__)

    def attempt(self) -> tuple[float | None, Metadata]:
        """Timeout and metadata of the next attempt."""
        timeout = self._deadline.remaining()
        metadata = make_metadata(
            self._area,
            request_id=self.request_id,
            timeout=timeout,
            api_key=self._config.api_key,
            trace=None if self._span is None else self._span.metadata(),
        )
        return timeout, metadata

    def to_error(self, status: RpcStatus) -> ArgosyError:
        """The exception for a failed attempt."""
        return to_error(status, address=self._config.address, request_id=self.request_id)

    def retry_in(self, error: ArgosyError) -> float | None:
        """Seconds to wait before the next attempt; None: the error is the caller's."""
        policy = self._config.retry
        self._failures += 1
        if not (_started_nothing(error) or self._may_repeat(error)) or self._failures >= policy.max_attempts:
            return None
        asked = error.retry_after or 0.0
        if asked > policy.max_delay:
            return None
        wait = max(asked, policy.backoff(self._failures)) * random.uniform(1.0, 1.0 + policy.jitter)  # noqa: S311
        remaining = self._deadline.remaining()
        return None if remaining is not None and wait >= remaining else wait

    def _may_repeat(self, error: ArgosyError) -> bool:
        """Whether the answer was lost on its way, or its engine failed and the server says that another try is worth
        it. Once only: a request that kills servers must not meet them all.
        """
        failed = isinstance(error, EngineFailedError) and error.retry_after is not None
        lost = isinstance(error, UnavailableError | CallCancelledError) and not error.reason
        first, self._lost = not self._lost, self._lost or failed or lost
        return first and (failed or (lost and self._area in _REPEATABLE))


def _method(request: Message) -> str:
    """`argosy.api.area.v1.AreaService/Method`: a request's message is named after its method."""
    package, _, name = request.DESCRIPTOR.full_name.removesuffix("Request").rpartition(".")
    return f"{package}.{package.split('.')[2].title()}Service/{name}"


def _started_nothing(error: ArgosyError) -> bool:
    if isinstance(error, ConnectError):
        return True
    if isinstance(error, EngineFailedError):
        return False
    return isinstance(error, UnavailableError | ResourceExhaustedError) and error.retry_after is not None
