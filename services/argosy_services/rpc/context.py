"""What a call brings along beside its request: id, deadline, metadata."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Absent from Ray Serve's context, where the deadline only shows as cancellation; the SDK sends it as a header as well.
_DEADLINE_HEADER = "x-argosy-timeout-ms"
_MILLISECONDS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Call:
    """One call in progress.

    `deadline` is a time of `time.monotonic()`, or None where the caller set none. `tenant` is an opaque name for who
    calls, the same for all calls with one API key and empty without keys; `may_raise_priority` tells whether it may go
    before others. Both are known once the key was checked.
    """

    request_id: str
    deadline: float | None
    metadata: Mapping[str, str]
    tenant: str = ""
    may_raise_priority: bool = False

    def remaining(self) -> float | None:
        """Seconds until the deadline, not below 0."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def open_call(grpc_context: Any) -> Call:
    """Reads a call from the context of either runtime."""
    metadata = {str(key): value for key, value in grpc_context.invocation_metadata() or () if isinstance(value, str)}
    given = metadata.get("x-request-id", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    remaining = _remaining(grpc_context, metadata)
    deadline = None if remaining is None else time.monotonic() + remaining
    return Call(request_id=request_id, deadline=deadline, metadata=metadata)


def _remaining(grpc_context: Any, metadata: Mapping[str, str]) -> float | None:
    time_remaining: Callable[[], float | None] | None = getattr(grpc_context, "time_remaining", None)
    if time_remaining is not None:
        return time_remaining()
    header = metadata.get(_DEADLINE_HEADER, "")
    return int(header) / 1000 if _MILLISECONDS.fullmatch(header) else None
